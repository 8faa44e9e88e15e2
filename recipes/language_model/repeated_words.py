"""Tokenising text whose words repeat: a byte-level BPE sees each word once, and its tokens are looked up after that.

GPT-2's rule cuts text before each word and its space, and BPE joins nothing across a cut. So the tokens of a text are
those of its words, one after another. Source of the rule: the `ByteLevel` pre-tokenizer of `tokenizers`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""White space in Unicode. Python's own class has four control characters more."""
WORD = re.compile(
    rf" ?[A-Za-z]+(?=[\x00-@\[-`{{-\x7f]|\Z)"  # English letters, where no other letter follows
    rf"| ?[^{SPACE}]+"  # anything else up to the next white space
    rf"|[{SPACE}]+(?![^{SPACE}])|[{SPACE}]"  # white space without the last character, which may belong to a word
)
"""Cuts text where GPT-2's rule cuts it too. The rule may cut a part further."""
MOST_CHARACTERS = 64
"""Characters of a word that is kept. A line without spaces, as in Chinese, hardly comes again."""
MOST_WORDS = 1 << 18
"""Words that are kept: about 50 MB. Then the next ones begin anew."""
TOGETHER = 1 << 20
"""Characters of text whose new words are tokenised in one call: each call takes as long as ten words."""


@dataclasses.dataclass
class RepeatedWords:
    """The tokens of the words that a tokenizer has seen."""

    tokenizer: Tokenizer
    newline: int
    """The token of a line end, which stands between new words when they are tokenised together."""
    tokens: dict[str, bytes] = dataclasses.field(default_factory=dict)
    """The token ids of each word, as bytes of int32."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> RepeatedWords | None:
        """The words of a tokenizer; None where its tokens of a word may depend on what stands around the word."""
        content = json.loads(tokenizer.to_str())
        before, model = content["pre_tokenizer"] or {}, content["model"]
        cuts_at_words = before.get("type") == "ByteLevel" and before["use_regex"] and not before["add_prefix_space"]
        is_plain = not (content["normalizer"] or content["truncation"] or content["padding"])
        has_own_marks = any(not token["special"] for token in content["added_tokens"])
        newline = model["vocab"].get("\u010a") if model["type"] == "BPE" and not model["dropout"] else None
        if not (cuts_at_words and is_plain) or has_own_marks or newline is None:
            return None
        return cls(tokenizer, newline)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, the same as the tokenizer's own. int32."""
        # Text that happens to spell a special token is text.
        self.tokenizer.encode_special_tokens = True
        found = []
        for group in _groups(texts):
            words = [WORD.findall(text) for text in group]
            new = {word for each in words for word in each}.difference(self.tokens)
            if len(self.tokens) + len(new) > MOST_WORDS:
                self.tokens.clear()
                new = {word for each in words for word in each}
            self._learn(new)
            look_up = self.tokens.__getitem__
            found += [np.frombuffer(b"".join(map(look_up, each)), np.int32) for each in words]
            for word in new:
                if len(word) > MOST_CHARACTERS:
                    del self.tokens[word]
        return found

    def _learn(self, new: set[str]) -> None:
        """Tokenise words. Those without white space inside go in one text with line ends between them."""
        # A word of white space alone would join with the line ends.
        spaces = [word for word in new if word.isspace()]
        words = list(new.difference(spaces))
        for word, ids in zip(spaces, self._ids(spaces), strict=True):
            self.tokens[word] = ids.tobytes()
        if not words:
            return
        (together,) = self._ids(["\n".join(words)])
        borders = (together.itemsize * np.flatnonzero(together == self.newline)).tolist()
        ids, firsts = together.tobytes(), [0, *(place + together.itemsize for place in borders)]
        for word, first, end in zip(words, firsts, [*borders, len(ids)], strict=True):
            self.tokens[word] = ids[first:end]

    def _ids(self, texts: list[str]) -> list[np.ndarray]:
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(each.ids, np.int32) for each in encoded]


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in groups of about TOGETHER characters."""
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= TOGETHER:
            yield group
            group, size = [], 0
    if group:
        yield group
