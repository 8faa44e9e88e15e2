"""How a column writes its numbers and dates: which mark is the decimal one, and whether the day or the month is first.

A cell that can be read in one way only ("3,5", "1.234,5", "31/12/2024") is read so. A cell that can be read in two
ways ("1,234", "03/04/2024") is read as the column's other cells are. The training rows decide that once, so that no
cell depends on the rows of its call. Where no cell of a column decides, a warning says how it was read.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

Form = Literal["", "decimal_comma", "decimal_point", "day_first", "month_first"]
"""Empty where every cell can be read in one way only; such a column is read like decimal_point and month_first."""
FORMS: dict[str, Literal["numeric", "date"]] = {
    "decimal_comma": "numeric",
    "decimal_point": "numeric",
    "day_first": "date",
    "month_first": "date",
}
"""The kind of column that each form belongs to."""

TWO_WAYS = re.compile(r"[+-]?[1-9]\d{0,2}([.,])\d{3}")
DOTS = re.compile(r"[+-]?\d{1,3}(?:\.\d{3}){2,}")
"""A number where commas are decimal; elsewhere an address ("192.168.100.200") or the like."""
INDIAN = re.compile(r"[+-]?\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d*)?")
SPACED = re.compile(r"[+-]?\d{1,3}(?:[ '’]\d{3})+")


def _with_decimal(decimal: str, group: str) -> re.Pattern[str]:
    return re.compile(
        rf"[+-]?(?:\d{{1,3}}(?:{group}\d{{3}}){{2,}}|\d{{1,3}}(?:[{group} '’]\d{{3}})+{decimal}\d*|\d*{decimal}\d+"
        rf"|\d+{decimal})(?:[eE][+-]?\d+)?"
    )


COMMA, POINT = _with_decimal(",", r"\."), _with_decimal(r"\.", ",")
GROUPS = str.maketrans("", "", " '’")

CLOCK = r"(?:[T ,]+(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?(?: ?([AaPp])\.?[Mm]\.?)?( ?Z|[+-]\d{2}:?\d{2})?)?"
MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
          "december")  # fmt: skip
MONTH = "(" + "|".join(f"{name[:3]}(?:{name[3:]})?" for name in MONTHS) + r"|sept)\.?"
ISO = re.compile(rf"(\d{{4}})(?:([-/.])(\d{{1,2}})\2(\d{{1,2}})|[-/](0[1-9]|1[0-2])){CLOCK}")
NUMBERS = re.compile(rf"(\d{{1,2}})([./-])(\d{{1,2}})\2(\d{{4}}){CLOCK}")
SHORT_YEAR = re.compile(rf"(?:(\d{{1,2}})(/)(\d{{1,2}})/(\d{{2}})|(\d{{2}})([.-])(\d{{2}})\6(\d{{2}})){CLOCK}")
DAY_NAME = re.compile(
    rf"(?:[a-z]{{3,9}},? )?(\d{{1,2}})(?:st|nd|rd|th|\.)?[ /-]?{MONTH}[ ,/-]*(\d{{4}}|(?<=-)\d{{2}}){CLOCK}", re.I
)
NAME_DAY = re.compile(rf"(?:[a-z]{{3,9}},? )?{MONTH} (\d{{1,2}})(?:st|nd|rd|th)?,? (\d{{4}}){CLOCK}", re.I)
NAME_YEAR = re.compile(rf"{MONTH},?[ /-](\d{{4}})", re.I)
MONTH_YEAR = re.compile(r"(\d{1,2})/((?:19|20)\d{2}|2100)")
SEASON = re.compile(r"(\d{4})[-/](\d{2})")
VERSION = re.compile(r"(\d{2})([.-])\d{2}\2\d{2}")


CURRENCIES = {"EUR": "€", "USD": "$", "GBP": "£", "JPY": "¥", "INR": "₹", "CHF": "CHF"}
"""Codes and signs of currencies that may stand before or behind a number."""
_SIGNS = "|".join(map(re.escape, dict.fromkeys((*CURRENCIES, *CURRENCIES.values()))))
UNIT = re.compile(
    rf"(?P<minus>-?)(?:(?P<before>{_SIGNS}) ?)?(?P<number>[-+]?\d.*?|[-+]?[.,]\d.*?)(?: ?(?P<behind>{_SIGNS}|%))?"
)
ACCOUNTING = re.compile(r"\((.*)\)")
"""A negative amount of money, in the way of accountants: "($1,200)"."""


class Evidence(NamedTuple):
    """What the cells of a column show about its form."""

    first: int = 0
    """Cells that can only have a decimal comma, or the day first."""
    second: int = 0
    """Cells that can only have a decimal point, or the month first."""
    doubtful: str = ""
    """A cell that can be read both ways."""
    doubts: int = 0
    """Number of such cells."""
    grouped: str = ""
    """A cell like "1.234": a number with a decimal point, unless others have decimal commas."""
    groups: int = 0
    """Number of such cells."""


def without_unit(text: str) -> tuple[str, str]:
    """A number without its currency or percent sign, and that sign: ("1,200", "$") of "$1,200".

    An amount in brackets is negative. Text that is no such number comes back as it is.
    """
    text = text.replace("\N{MINUS SIGN}", "-")
    if not text or text.isalpha():
        return text, ""
    bracket = ACCOUNTING.fullmatch(text)
    found = UNIT.fullmatch(bracket[1] if bracket is not None else text)
    if found is None or (found["before"] and found["behind"]):
        return text, ""
    unit = found["before"] or found["behind"] or ""
    if not unit:
        return text, ""
    sign = "-" if bracket is not None or found["minus"] else ""
    return sign + found["number"], CURRENCIES.get(unit, unit)


def units(texts: Iterable[str]) -> set[str]:
    """The currencies, and the percent sign, that the cells of a column bear."""
    return {unit for text in texts if (unit := without_unit(text)[1])}


def number(text: str, form: Form) -> float:
    """A cell as a number, NaN where it is none: "3,5" is 3.5 in any column, "1,234" as the column's form says.

    "$3.50" is 3.5, and "45%" is 0.45.
    """
    text, unit = without_unit(text)
    value = _bare_number(text, form)
    if unit and np.isnan(value) and re.fullmatch(r"[-+]?\d+(?:[eE][-+]?\d+)?", text):
        value = float(text)
    return value / 100 if unit == "%" else value


def _bare_number(text: str, form: Form) -> float:
    is_comma = form == "decimal_comma"
    two_ways = TWO_WAYS.fullmatch(text)
    if two_ways is not None:
        is_decimal = (two_ways[1] == ",") == is_comma
        return float(text.replace(two_ways[1], "." if is_decimal else ""))
    if DOTS.fullmatch(text) and not is_comma:
        return np.nan
    if COMMA.fullmatch(text):
        return float(text.translate(GROUPS).replace(".", "").replace(",", "."))
    if POINT.fullmatch(text) or INDIAN.fullmatch(text):
        return float(text.translate(GROUPS).replace(",", ""))
    if SPACED.fullmatch(text):
        return float(text.translate(GROUPS))
    return np.nan


def numbers(texts: list[str], form: Form) -> np.ndarray:
    """(texts,) float64 of cells; NaN for what is no number."""
    import pandas as pd

    converted = cast("pd.Series", pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce"))
    values = converted.to_numpy(dtype=np.float64, na_value=np.nan).copy()
    for place in np.flatnonzero(np.isnan(values)).tolist():
        values[place] = number(texts[place], form)
    if form == "decimal_comma":
        # pandas has read "1.234" with a decimal point.
        for place, text in enumerate(texts):
            if TWO_WAYS.fullmatch(text):
                values[place] = number(text, form)
    return values


def number_evidence(texts: Iterable[str]) -> Evidence:
    """What cells that are numbers show about the decimal mark."""
    comma = point = doubts = groups = dots = 0
    doubtful = grouped = ""
    for text in texts:
        text, _ = without_unit(text)
        two_ways = TWO_WAYS.fullmatch(text)
        if two_ways is not None and two_ways[1] == ",":
            doubtful, doubts = doubtful or text, doubts + 1
        elif two_ways is not None:
            grouped, groups = grouped or text, groups + 1
        elif DOTS.fullmatch(text):
            dots += 1
        elif "," in text or "." in text:
            comma += COMMA.fullmatch(text) is not None
            point += POINT.fullmatch(text) is not None or INDIAN.fullmatch(text) is not None
    return Evidence(comma + (dots if comma or groups else 0), point, doubtful, doubts, grouped, groups)


def date_evidence(texts: Iterable[str]) -> Evidence:
    """What cells show about the place of the day. Countries that write points between the parts write the day first."""
    day = month = doubts = 0
    doubtful = ""
    for text in texts:
        first, mark, second, _ = _short(text)
        if mark == "." or first > 12 >= second:
            day += 1
        elif second > 12 >= first:
            month += 1
        elif mark and first != second:
            doubtful, doubts = doubtful or text, doubts + 1
    return Evidence(day, month, doubtful, doubts)


def _short(text: str) -> tuple[int, str, int, str]:
    """(first, mark, second, year) of a date in three numbers that ends with the year; no mark where it is no such
    date."""
    found = NUMBERS.fullmatch(text)
    parts = found.groups()[:4] if found is not None else None
    if parts is None and (found := SHORT_YEAR.fullmatch(text)) is not None:
        parts = found.groups()[:4] if found[1] else found.groups()[4:8]
    return (int(parts[0]), parts[1], int(parts[2]), parts[3]) if parts is not None else (0, "", 0, "")


def iso_date(text: str, form: Form) -> str | None:
    """A cell as an ISO date, None where it is none: "31/12/2024" in any column, "03/04/2024" as the form says."""
    first, mark, second, year = _short(text)
    if (found := ISO.fullmatch(text)) is not None:
        year, month, day = found[1], int(found[3] or found[5]), int(found[4] or 1)
    elif mark:
        found = NUMBERS.fullmatch(text) or SHORT_YEAR.fullmatch(text)
        is_day_first = first > 12 or (second <= 12 and (form == "day_first" or (mark == "." and form == "")))
        day, month = (first, second) if is_day_first else (second, first)
    elif (found := DAY_NAME.fullmatch(text)) is not None:
        day, month, year = int(found[1]), _month(found[2]), found[3]
    elif (found := NAME_DAY.fullmatch(text)) is not None:
        day, month, year = int(found[2]), _month(found[1]), found[3]
    elif (found := NAME_YEAR.fullmatch(text)) is not None:
        return f"{found[2]}-{_month(found[1]):02d}-01"
    elif (found := MONTH_YEAR.fullmatch(text)) is not None and 1 <= int(found[1]) <= 12:
        return f"{found[2]}-{int(found[1]):02d}-01"
    else:
        return None
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    if len(year) == 2:
        # As in POSIX: 69 to 99 are the last century's.
        year = f"{'19' if int(year) >= 69 else '20'}{year}"
    assert found is not None
    clock = found.groups()[-5:]
    return f"{year}-{month:02d}-{day:02d}{_clock(*clock)}"


def _month(name: str) -> int:
    return next(place for place, month in enumerate(MONTHS, 1) if month.startswith(name[:3].lower()))


def _clock(hours: str | None, minutes: str | None, seconds: str | None, half: str | None, zone: str | None) -> str:
    if hours is None:
        return ""
    hour = int(hours)
    if half:
        hour = hour % 12 + (12 if half in "Pp" else 0)
    return f"T{hour:02d}:{minutes}{f':{seconds}' if seconds else ''}{(zone or '').strip()}"


def dates(texts: list[str], form: Form) -> pd.Series:
    """(texts,) timestamps in UTC; NaT for what is no date."""
    import pandas as pd

    # pandas reads ISO at once, and far years in microseconds; a bare number ("5") is no date.
    found = pd.to_datetime(pd.Series(texts, dtype=object), errors="coerce", utc=True, format="ISO8601")
    found = found.dt.as_unit("us")
    others = np.flatnonzero(found.isna().to_numpy())
    if len(others):
        rewritten = pd.Series([iso_date(texts[place], form) for place in others.tolist()], dtype=object)
        found.iloc[others] = pd.to_datetime(rewritten, errors="coerce", utc=True, format="ISO8601").dt.as_unit("us")
    return found


def are_dates(texts: list[str]) -> bool:
    """Whether different cells are dates; seasons ("2001/02", "2002/03") and versions ("10.11.12") are not."""
    if np.mean([iso_date(text, "") is not None for text in texts]) < 0.95:
        return False
    seasons = [found for text in texts if (found := SEASON.fullmatch(text)) is not None]
    if len(seasons) > len(texts) / 2 and all((int(found[1]) + 1) % 100 == int(found[2]) for found in seasons):
        return False
    # With hyphens, the year may be first; with points, a first part beyond the months is a day.
    versions = [found for text in texts if (found := VERSION.fullmatch(text)) is not None]
    return len(versions) <= len(texts) / 2 or any(found[2] == "." and int(found[1]) > 12 for found in versions)


def decided(evidence: Evidence, habit: Evidence, kind: str, name: str = "") -> tuple[Form, str]:
    """A column's form, and a warning where its cells leave it open; then `habit`, the other columns, decides."""
    first: Form = "decimal_comma" if kind == "numeric" else "day_first"
    second: Form = "decimal_point" if kind == "numeric" else "month_first"
    # A point in "1.234" is the decimal one anyway, unless commas are.
    many = {first: evidence.doubts + evidence.groups, second: evidence.doubts}
    example = {first: evidence.doubtful or evidence.grouped, second: evidence.doubtful}
    form, other, own, others = first, second, evidence.first, evidence.second
    if others > own:
        form, other, own, others = second, first, others, own
    if others:
        return form, (
            f"{others} of the different cells of {name} can only be {other}; what can be both was taken for {form}"
        )
    if own:
        if many[form] <= own:
            return form, ""
        why = f", by {own} of its different cells"
    elif bool(habit.first) != bool(habit.second):
        form, other = (first, second) if habit.first else (second, first)
        why = ", as the other columns are written"
    else:
        form, other, why = second, first, ""
    text = example[form]
    if not text:
        return "", ""
    read = f"{number(text, form):g}" if kind == "numeric" else str(iso_date(text, form))[:10]
    typed = shlex.quote(f"{name}={other}")
    return form, f"{text} of {name} was taken for {read}{why}; if that is wrong, type --data.kinds {typed}"
