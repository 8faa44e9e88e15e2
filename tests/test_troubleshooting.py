"""The messages on docs/troubleshooting.md are those of the code. Run alone: pytest tests/test_troubleshooting.py"""

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def texts_of_the_code() -> str:
    """Every string of the runner, with what is filled in left out, and adjacent ones joined."""
    found = []
    for path in (REPOSITORY / "runner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def parts_not_found(page: str) -> list[str]:
    """The parts between the dots of each message on a page that no string of the code holds."""
    code = " ".join(texts_of_the_code().split())
    messages = re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)
    assert len(messages) > 15
    parts = [part.strip(" :") for message in messages for part in message.split("...")]
    return [part for part in parts if len(part) > 2 and part not in code]


def test_every_message_of_the_page_is_in_the_code() -> None:
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert not parts_not_found(page)
    assert parts_not_found(page.replace("already holds checkpoints", "already has checkpoints"))
