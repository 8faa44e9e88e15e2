"""Run benchmarks one after another, and write what they measured into the page of benchmarks.

python -m tests.benchmarks                                            all that have tables there, printed
python -m tests.benchmarks loop start --write docs/benchmarks.md      two of them, written
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks import page

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "benchmarks.md"


def main(arguments: list[str] | None = None) -> int:
    """Run benchmarks; returns the number of those that failed, whose tables stay as they were."""
    names = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; without one, all with tables")
    parser.add_argument("--write", type=Path, help="the page into which the tables are written")
    options = parser.parse_args(arguments)
    if wrong := set(options.names) - set(names):
        parser.error(f"there is no benchmark {', '.join(sorted(wrong))}: name some of {', '.join(names)}")
    failed = 0
    # The compared packages that the environment has not, from the Makefile.
    path = os.pathsep.join(filter(None, [str(FOLDER.parents[1]), os.environ.get("PYTHONPATH")]))
    # Without tables on the page: long ones, whose figures stand elsewhere, and those that need a trained model.
    with_tables = page.marked(options.write or PAGE)
    for name in options.names or [each for each in names if each in with_tables]:
        with tempfile.TemporaryDirectory() as folder:
            records = Path(folder) / "tables.jsonl"
            records.touch()
            words = [sys.executable, "-m", "pytest", f"{FOLDER}/bench_{name}.py", "-s", "-o", "python_files=bench_*.py"]
            environment = {**os.environ, page.RECORDS: str(records), "PYTHONPATH": path}
            environment.setdefault("OMP_NUM_THREADS", "1")
            if subprocess.run(words, env=environment, cwd=FOLDER.parents[1]).returncode:
                failed += 1
            elif options.write and (tables := page.recorded(records)):
                page.write_into(options.write, name, page.block(tables, f"python -m tests.benchmarks {name}"))
    return failed


if __name__ == "__main__":
    sys.exit(main())
