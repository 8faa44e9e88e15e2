"""`relay configs [NAME]`: where the files for accelerate launch --config_file are."""

import dataclasses
from typing import Annotated

from runner.config import parse_into
from runner.parts.installation import launch_config_names, shown_launch_config
from runner.parts.setting_types import Position


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigsSettings:
    """Which file is shown."""

    name: Annotated[str | None, Position("NAME", "cpu_2", "the name of a file")] = None
    """Name of one file, such as cpu_2; it may stand alone, without the flag. None: all of them."""


def main(arguments: list[str]) -> None:
    """Print the path of one file, or of all."""
    settings = parse_into(ConfigsSettings, arguments, "relay configs", __doc__)
    for name in launch_config_names() if settings.name is None else [settings.name]:
        print(shown_launch_config(name))
