"""The splits as the runner reads them: questions become token ids when needed, in training after augmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recipes.text2sql.prompts.encoding import Encoder, Example

if TYPE_CHECKING:
    from recipes.text2sql.data.mixing import MixedOrder
    from recipes.text2sql.data.questions import Question

import dataclasses
import functools
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING


@dataclasses.dataclass(frozen=True)
class Examples:
    """A split. Each question becomes token ids when it is needed."""

    encoder: Encoder
    questions: Sequence[Question]

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Example:
        return self.encoder.example(self.questions[index])

    def length_of(self, index: int) -> int:
        """About how long an example is: the characters of the question, its SQL and the names of the schema."""
        if index not in self.lengths:
            question = self.questions[index]
            names = question.schema.num_characters if self.encoder.settings.schema_in_prompt else 0
            self.lengths[index] = len(question.text) + len(question.query) + names
        return self.lengths[index]

    @functools.cached_property
    def lengths(self) -> dict[int, int]:
        """What `length_of` has found out."""
        return {}


@dataclasses.dataclass(frozen=True)
class TrainingExamples(Examples):
    """The training split, with the augmentations that the settings ask for."""

    def __getitem__(self, index: int) -> Example:
        from recipes.text2sql.augmentation import recombination, rewriting
        from recipes.text2sql.prompts import prompt

        settings, question = self.encoder.settings, self.questions[index]
        text, links = question.link()
        target = question.target(links)
        if settings.augmentation_prob and random.random() < settings.augmentation_prob:
            text = rewriting.paraphrase(text, question.schema, random)
            if random.random() < 0.5:
                canonical = question.canonical
                other = rewriting.rewrite(canonical, question.schema, question.database, random)
                target = prompt.hide(other, links)
        if random.random() < settings.recombination_prob:
            text, target = random.choice(self.recombined[index] or [(text, target)])
        if question.database and random.random() < settings.value_swap_prob:
            links = recombination.swap_values(links, target, question.database, random)
        if settings.schema_perturbation_prob and random.random() < settings.schema_perturbation_prob:
            renamed = rewriting.renamed(question.schema, links, target, random)
            if renamed is not None:
                schema, links, target = renamed
                question = dataclasses.replace(question, schema=schema)
        return self.encoder.encode(question, text, links, target, settings.word_dropout)

    @functools.cached_property
    def recombined(self) -> list[list[tuple[str, str]]]:
        """New pairs for each question, the same on every process."""
        from recipes.text2sql.augmentation.recombination import recombine_questions

        return recombine_questions(self.questions)

    def warnings(self, examples: int) -> list[str]:
        """Warnings for a run of `examples` examples: a source that it repeats too often."""
        from recipes.text2sql.data.questions import WEIGHTED

        source, most = self.encoder.settings.source, self.encoder.settings.max_source_epochs
        passes = examples / len(self)
        if source not in WEIGHTED or not most or passes <= most:
            return []
        return [
            f"{examples:,} examples repeat {source} {passes:.1f} times, and data.max_source_epochs is {most:g}: "
            "lower --max_steps, or mix other sources in."
        ]


@dataclasses.dataclass(frozen=True)
class MixedExamples(TrainingExamples):
    """Several sources, each with its share."""

    def order(self, batch_size: int, micro_batch_size: int, seed: int) -> MixedOrder:
        """Which examples a lane holds."""
        from recipes.text2sql.data.cache import Mixture
        from recipes.text2sql.data.mixing import MixedOrder
        from recipes.text2sql.data.questions import WEIGHTED

        assert isinstance(self.questions, Mixture)
        settings, names = self.encoder.settings, tuple(self.questions.parts)
        weights = tuple(getattr(settings, f"{WEIGHTED[name]}_weight") for name in names)
        most = settings.max_source_epochs
        return MixedOrder(names, self.questions.sizes, weights, batch_size, micro_batch_size, seed, most)

    def warnings(self, examples: int) -> list[str]:
        """Warnings for a run of `examples` examples."""
        return self.order(1, 1, 0).warnings(examples)
