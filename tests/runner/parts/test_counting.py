"""How far a command is. Run alone: python -m pytest tests/runner/parts/test_counting.py"""

import pytest

from runner.parts import counting


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("seconds", [0.01, 2.0])
@pytest.mark.parametrize("stops_at", [3, 5])
def test_what_takes_a_while_has_a_bar_or_a_line(
    terminal: bool,
    seconds: float,
    stops_at: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr(counting.time, "monotonic", lambda: now[0])
    seen = []
    items = counting.counted(range(5), 5, "range test", "steps")
    for item in items:
        if item == stops_at:
            break
        seen.append(item)
        now[0] += seconds
    items.close()  # type: ignore[attr-defined]
    shown = capsys.readouterr().err
    assert seen == list(range(stops_at))
    if seconds < 1:
        assert shown == ""
    elif terminal:
        assert "range test" in shown and f"{stops_at}/5" in shown
    else:
        assert shown == f"range test: {'3 of 5' if stops_at == 3 else '5'} steps in {2 * stops_at} s\n"


def test_nothing_is_shown_where_nothing_is_to_be_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(range(1000))
    monkeypatch.setattr(counting.time, "monotonic", lambda: float(next(times)))
    assert list(counting.counted("abc", 3, "title", "letters", is_shown=False)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
