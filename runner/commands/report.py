"""`relay report RUN`: write report.html of a run, also while it goes on."""

from pathlib import Path

from runner.errors import ConfigError


def main(arguments: list[str]) -> None:
    """Write the page and say where it is."""
    if arguments and arguments[0] in ("-h", "--help"):
        print("usage: relay report RUN    write RUN/report.html from the metrics of a run")
        return
    if len(arguments) != 1:
        raise ConfigError("relay report takes the folder of a run: type relay report runs/NAME.")
    from runner import report

    try:
        print(report.write(Path(arguments[0])))
    except FileNotFoundError as error:
        raise ConfigError(f"There is no {error.args[0]}: type relay report with the folder of a run.") from None
