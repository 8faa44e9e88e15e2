"""`relay report RUN`: write report.html of a run, also while it goes on."""

import dataclasses
from pathlib import Path
from typing import Annotated

from runner.config import parse_into
from runner.errors import ConfigError
from runner.parts.setting_types import Position


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Settings of a report."""

    run: Annotated[str, Position("RUN", "runs/NAME", "the folder of a run")]
    """Folder of a run, such as runs/NAME; it may stand alone, without the flag."""


def main(arguments: list[str]) -> None:
    """Write the page and say where it is."""
    settings = parse_into(ReportSettings, arguments, "relay report", __doc__)
    from runner import report

    try:
        print(report.write(Path(settings.run)))
    except FileNotFoundError as error:
        raise ConfigError(f"There is no {error.args[0]}: type relay report with the folder of a run.") from None
