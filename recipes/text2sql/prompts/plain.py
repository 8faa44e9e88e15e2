"""The prompt of a model that was trained elsewhere: names stay names, values are not hidden.

An instruct model gets its own chat template, and begins its answer with a block of SQL. Another model continues a
comment with the question. Only the answer is scored.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

from recipes.text2sql.sql.names import pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REQUEST = "{schema}\n\nWrite one SQLite query that answers this question: {question}"
FENCE = "```"
CONTINUED = "{schema}\n\n-- {question}\n"


def prompt_ids(tokenizer: PreTrainedTokenizerBase, schema: str, question: str) -> list[int]:
    """The token ids that the model continues."""
    question = " ".join(question.split())
    if not tokenizer.chat_template:
        return list(tokenizer(CONTINUED.format(schema=schema, question=question))["input_ids"])
    messages = [{"role": "user", "content": REQUEST.format(schema=schema, question=question)}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(f"{text}{FENCE}sql\n", add_special_tokens=False)["input_ids"])


def answer(tokenizer: PreTrainedTokenizerBase, query: str) -> str:
    """What the model is to write for a query."""
    return f"{query}\n{FENCE}" if tokenizer.chat_template else f"{query};"


def query_of(text: str) -> str:
    """The query in what a model wrote: up to the end of its block, its statement or its paragraph."""
    text = text.strip()
    if match := re.match(rf"{FENCE}(?:sql|sqlite)?\s*\n?", text, re.IGNORECASE):
        text = text[match.end() :]
    text = re.split(rf"{FENCE}|\n\s*\n", text.strip(), maxsplit=1)[0]
    # The end of a line ends a comment.
    space = None if "--" in text else " "
    kept = itertools.takewhile(lambda each: each[1] != ";", pieces(text))
    return "".join(space or piece if kind == "space" else piece for kind, piece in kept).strip()
