"""`relay report RUN`: write report.html of a run, also while it goes on; `relay report A B C` compares runs."""

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated

from runner.config import parse_into
from runner.errors import ConfigError
from runner.parts.setting_types import Position


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Settings of a report."""

    run: Annotated[str, Position("RUN", "runs/NAME", "the folder of a run")]
    """Folder of a run, such as runs/NAME; it may stand alone, without the flag. Folders of other runs may follow it."""
    output: str | None = None
    """File to write; report.html in the run's folder when not given, or of several runs beside the first one's."""
    text: bool = False
    """Print scores, and right and wrong answers, instead of writing a page."""


def main(arguments: list[str]) -> None:
    """Write the page and say where it is."""
    folders = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    first, others = folders[:1], folders[1:]
    settings = parse_into(ReportSettings, first + arguments[len(folders) :], "relay report", __doc__)
    from runner import report

    output = Path(settings.output) if settings.output else None
    if output is not None and output.is_dir():
        raise ConfigError(f"output is {output}, a folder: type --output with a file that ends in .html.")
    try:
        if settings.text:
            print("\n\n".join(report.in_words(Path(folder)) for folder in (settings.run, *others)))
            return
        print(report.write(Path(settings.run), *map(Path, others), output=output))
    except FileNotFoundError as error:
        raise ConfigError(f"There is no {error.args[0]}: type relay report with the folder of a run.") from None
