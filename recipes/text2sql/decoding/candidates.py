"""Writing SQL with a trained model: the likeliest, beams, draws, votes, and only what the schema's grammar allows.

A batch writes what its questions write one by one: whatever is drawn depends on the seed, the prompt and the number
of the candidate, never on the neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recipes.text2sql.decoding.masks import OnlyGrammatical, writer_of
from recipes.text2sql.prompts.prompt import reveal, reveal_names
from recipes.text2sql.sql.canonical import canonical
from recipes.text2sql.sql.execution import Execution, execute
from recipes.text2sql.sql.results import first_that_finds, is_ordered, same_result

if TYPE_CHECKING:
    from recipes.text2sql.prompts.encoding import Encoder, Example
    from recipes.text2sql.settings import GenerationSettings
    from recipes.text2sql.sql.schema import Schema

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

if TYPE_CHECKING:
    from torch import Tensor

    pass
    pass
    pass


def write(encoder: Encoder, settings: GenerationSettings, model: Any, examples: Sequence[Example]) -> list[str]:
    """One query for each example, with the database's own values and names in the placeholders' places."""
    chosen = []
    for example, candidates in zip(examples, write_candidates(encoder, settings, model, examples), strict=True):
        database = example.question.database
        if settings.voting:
            chosen.append(most_voted(candidates, database, example.question.schema))
        elif settings.execution_guided and database is not None:
            chosen.append(first_that_finds(candidates, database))
        else:
            chosen.append(candidates[0])
    return chosen


def write_candidates(
    encoder: Encoder, settings: GenerationSettings, model: Any, examples: Sequence[Example]
) -> list[list[str]]:
    """The candidates for each example: beams, the likeliest first, or draws, the first of several not drawn."""
    tokenizer = encoder.tokenizer
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    drawn = settings.temperature > 0
    count = settings.num_candidates if drawn else settings.num_beams
    longest = max(len(example.prompt) for example in examples)
    padding = [longest - len(example.prompt) for example in examples]
    ids = torch.tensor([[pad] * more + e.prompt for more, e in zip(padding, examples, strict=True)])
    mask = torch.tensor([[0] * more + [1] * len(e.prompt) for more, e in zip(padding, examples, strict=True)])
    processors = LogitsProcessorList()
    if settings.constrained:
        writers = [writer_of(encoder, example) for example in examples]
        processors.append(OnlyGrammatical(writers, count, longest, settings.max_new_tokens))
    if drawn:
        ids, mask = ids.repeat_interleave(count, 0), mask.repeat_interleave(count, 0)
        processors.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_p < 1:
            processors.append(TopPLogitsWarper(settings.top_p))
        processors.append(SeededSampling(uniforms(examples, count, settings.max_new_tokens, settings.seed), longest))
    written = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        num_beams=1 if drawn else count,
        num_return_sequences=1 if drawn else count,
        logits_processor=processors,
    )  # (batch * candidates, time)
    texts = [str(tokenizer.decode([t for t in row if t not in (pad, end)])) for row in written[:, longest:].tolist()]
    return [
        [as_sql(encoder, text, example) for text in texts[number * count : (number + 1) * count]]
        for number, example in enumerate(examples)
    ]


def as_sql(encoder: Encoder, text: str, example: Example) -> str:
    """What the model wrote as the SQL that it stands for."""
    if encoder.settings.schema_tokens:
        text = reveal_names(text, example.question.schema)
    return reveal(text, example.links)


def uniforms(examples: Sequence[Example], count: int, steps: int, seed: int) -> Tensor:
    """(examples * count, steps) numbers in [0, 1): the dice of each candidate. Those of the first of several are 2."""
    rows = []
    for example in examples:
        for number in range(count):
            key = hashlib.sha256(repr((seed, number, example.prompt)).encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
            rows.append(torch.rand(steps, generator=generator) if number or count == 1 else torch.full((steps,), 2.0))
    return torch.stack(rows)


class SeededSampling(LogitsProcessor):
    """Leaves one token for each row: the one that its number picks from the distribution, or the likeliest for a 2.

    `dice` is (rows, steps). Greedy search then takes what is left; so a row's draw does not depend on other rows, as
    it does where `generate` draws for the whole batch from one generator.
    """

    def __init__(self, dice: Tensor, prompt_length: int) -> None:
        self.dice, self.prompt_length = dice, prompt_length

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """(rows, time), (rows, vocabulary) -> (rows, vocabulary): minus infinity but for one token of each row."""
        dice = self.dice[:, input_ids.shape[1] - self.prompt_length].to(scores.device)
        shares, order = scores.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
        place = (shares.double().cumsum(-1) < dice.double()[:, None]).sum(-1)
        # Rounding may leave the sum below the number: then the last token that has a share.
        place = torch.minimum(place, (shares > 0).sum(-1) - 1)
        place[dice == 2.0] = 0
        drawn = order.gather(-1, place[:, None])
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, scores.gather(-1, drawn))


def most_voted(candidates: Sequence[str], database: str | None, schema: Schema) -> str:
    """The first candidate of those whose rows most candidates give; without a database, whose spelling most have.

    Queries that fail have no vote, and those that find nothing only where none finds anything. The earlier wins a
    tie. Source: Shi et al. 2022 (execution-based minimum Bayes risk), arXiv 2204.11454.
    """
    if database is None:
        spellings = [canonical(candidate, schema) for candidate in candidates]
        return candidates[max(range(len(candidates)), key=lambda place: (spellings.count(spellings[place]), -place))]
    runs = {query: execute(database, query, timeout_seconds=2.0) for query in dict.fromkeys(candidates)}
    for counts in (_finds, lambda run: run.error is None):
        voters = [query for query in candidates if counts(runs[query])]
        if voters:
            groups: list[list[str]] = []
            for query in voters:
                for group in groups:
                    both = is_ordered(query) and is_ordered(group[0])
                    if query in group or same_result(runs[query], runs[group[0]], both):
                        group.append(query)
                        break
                else:
                    groups.append([query])
            return max(groups, key=len)[0]
    return candidates[0]


def _finds(run: Execution) -> bool:
    return run.error is None and any(value is not None for row in run.rows for value in row)


# Only what the grammar allows -----------------------------------------------------------------------------
