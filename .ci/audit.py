"""Look the pinned packages up in the list of known vulnerabilities with pip-audit, where that list is reachable.

python .ci/audit.py        ends with status 1 where a package has a known vulnerability
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
LIMIT_SECONDS = 120


def main() -> int:
    """Ask pip-audit; returns the exit status."""
    # The versions are pinned, so nothing has to be resolved or installed.
    words = ["-r", str(CONSTRAINTS), "--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", *words], capture_output=True, text=True, timeout=LIMIT_SECONDS
        )
        answer = done.stdout
        trouble = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
    except subprocess.TimeoutExpired:
        answer, trouble = "", f"no answer within {LIMIT_SECONDS} s"
    lines, status = verdict(answer, trouble)
    print("\n".join(lines))
    return status


def verdict(answer: str, trouble: str) -> tuple[list[str], int]:
    """What to print of pip-audit's answer, in JSON, and the exit status. `trouble` is why there is no answer."""
    try:
        packages: list[Mapping[str, object]] = json.loads(answer)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return [f"vulnerabilities were not looked up: {trouble}"], 0
    unknown = [str(each["name"]) for each in packages if "skip_reason" in each]
    if len(unknown) == len(packages):
        return [f"vulnerabilities were not looked up: this index has no data on any of {len(packages)} packages"], 0
    wrong = [
        f"error: {each['name']} {each['version']} has {found['id']}: "
        f"pin {' or '.join(found['fix_versions']) or 'another package, for it has no mended version'}"
        for each in packages
        for found in each.get("vulns", ())  # type: ignore[attr-defined]
    ]
    rest = f"; no data on {', '.join(unknown)}" if unknown else ""
    counted = f"{len(packages) - len(unknown)} packages looked up, {len(wrong)} known vulnerabilities{rest}"
    return [*wrong, counted], 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
