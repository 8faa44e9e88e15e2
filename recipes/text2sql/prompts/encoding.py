"""A question as token ids, and the tokenizer that makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recipes.text2sql.data.questions import Question
    from recipes.text2sql.prompts.prompt import Link

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
    pass


@dataclasses.dataclass(frozen=True)
class Example:
    """A question as the model sees it."""

    question: Question
    prompt: list[int]
    target: list[int]
    links: list[Link]
