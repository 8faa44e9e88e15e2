"""The training runner. `runner.train` is the program, `runner.recipe` the contract with recipes."""

import sys

__version__ = "0.1.0"

if sys.version_info < (3, 10):  # noqa: UP036
    # The files of Relay have syntax that older versions refuse with a traceback.
    sys.stderr.write(
        "error: Relay needs Python 3.10 or newer; this is Python %d.%d. Type python3.11 -m runner, for one.\n"  # noqa: UP031
        % sys.version_info[:2]
    )
    raise SystemExit(2)
