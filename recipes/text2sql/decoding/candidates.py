"""Generates SQL with a trained model: greedily, by beams or by sampling, with a vote or with constrained decoding.

A question gets the same SQL in any batch: a sample depends on the seed, the prompt and the number of the candidate.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from recipes.text2sql.decoding.masks import OnlyGrammatical, writer_of
from recipes.text2sql.model import positions
from recipes.text2sql.prompts.prompt import reveal, reveal_names
from recipes.text2sql.sql.canonical import canonical
from recipes.text2sql.sql.execution import Execution, execute
from recipes.text2sql.sql.names import fold, is_bare, pieces, quoted
from recipes.text2sql.sql.results import first_that_finds, is_ordered, is_valid, same_result

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache

    from recipes.text2sql.prompts.encoding import Encoder, Example
    from recipes.text2sql.settings import GenerationSettings
    from recipes.text2sql.sql.schema import Schema


def write(encoder: Encoder, settings: GenerationSettings, model: Any, examples: Sequence[Example]) -> list[str]:
    """One query per example, with the database's values and names in place of placeholders and tokens."""
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
    """The candidates of each example: beams, the most likely first, or samples, the first of several greedy."""
    tokenizer = encoder.tokenizer
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    is_sampled = settings.temperature > 0
    count = settings.num_candidates if is_sampled else settings.num_beams
    longest = max(len(example.prompt) for example in examples)
    padding = [longest - len(example.prompt) for example in examples]
    ids = torch.tensor([[pad] * more + e.prompt for more, e in zip(padding, examples, strict=True)])
    mask = torch.tensor([[0] * more + [1] * len(e.prompt) for more, e in zip(padding, examples, strict=True)])
    processors = LogitsProcessorList()
    if settings.constrained:
        writers = [writer_of(encoder, example) for example in examples]
        # Beam search looks at twice as many tokens as it has beams, and at more if several tokens may end a text.
        needed = None if is_sampled else 1 if count == 1 else 4 * count
        processors.append(OnlyGrammatical(writers, count, longest, settings.max_new_tokens, needed))
    ids, mask = ids.to(model.device), mask.to(model.device)
    read = {"past_key_values": prompts_read_once(model, ids, mask, count)} if count > 1 else {}
    if is_sampled:
        ids, mask = ids.repeat_interleave(count, 0), mask.repeat_interleave(count, 0)
        processors.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_p < 1:
            processors.append(TopPLogitsWarper(settings.top_p))
        processors.append(SeededSampling(uniforms(examples, count, settings.max_new_tokens, settings.seed), longest))
    written = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        num_beams=1 if is_sampled else count,
        num_return_sequences=1 if is_sampled else count,
        logits_processor=processors,
        **read,
    )  # (batch * candidates, time)
    texts = [str(tokenizer.decode([t for t in row if t not in (pad, end)])) for row in written[:, longest:].tolist()]
    return [
        [as_sql(encoder, text, example) for text in texts[number * count : (number + 1) * count]]
        for number, example in enumerate(examples)
    ]


def prompts_read_once(model: Any, ids: Tensor, mask: Tensor, count: int) -> Cache | None:
    """Keys and values of all but the last token of each prompt, `count` times: candidates share the work of reading.

    `ids` and `mask` are (batch, time), padded on the left. None where the model has another kind of cache, or is no
    module at all but writes by a `generate` of its own, and where the prompts are too short.
    """
    if ids.shape[1] < 2 or not isinstance(model, torch.nn.Module):
        return None
    ids, mask = ids[:, :-1], mask[:, :-1]
    with torch.no_grad():
        cache = model(
            input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1, **positions(model, mask)
        ).past_key_values
    if not isinstance(cache, DynamicCache):
        return None
    cache.batch_repeat_interleave(count)
    return cache


def as_sql(encoder: Encoder, text: str, example: Example) -> str:
    """The SQL that the generated text stands for."""
    text = encoder.query_of(text)
    if encoder.settings.schema_tokens:
        text = reveal_names(text, example.question.schema)
    return with_quotes(reveal(text, example.links), example.question.schema, example.question.database)


def with_quotes(query: str, schema: Schema, database: str | None) -> str:
    """The query with quotes around names that need them, where it is valid only with them.

    Without constrained decoding, a model may write `order` or `date of birth` as the prompt shows it. Keywords are in
    upper case in what it has learned, so only the lower-case spelling is taken for a name.
    """
    odd = _names_with_quotes(schema)
    if odd is None or is_valid(database or schema, query):
        return query
    changed = "".join(
        piece if kind in ("text", "name") else odd.sub(lambda match: quoted(match[0]), piece)
        for kind, piece in _joined(pieces(query))
    )
    return changed if changed != query and is_valid(database or schema, changed) else query


@functools.lru_cache(maxsize=512)
def _names_with_quotes(schema: Schema) -> re.Pattern[str] | None:
    """A pattern for the names that need quotes, the longest first; None where the schema has none."""
    names = {fold(name) for table, columns in schema.tables.items() for name in (table, *columns)}
    odd = sorted((name for name in names if name and not is_bare(name)), key=len, reverse=True)
    return re.compile(r"(?<![\w$])(?:" + "|".join(map(re.escape, odd)) + r")(?![\w$])") if odd else None


def _joined(parts: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The pieces of SQL with those between two quoted ones as one."""
    for is_quoted, group in itertools.groupby(parts, key=lambda part: part[0] in ("text", "name")):
        if is_quoted:
            yield from group
        else:
            yield "other", "".join(piece for _, piece in group)


def uniforms(examples: Sequence[Example], count: int, steps: int, seed: int) -> Tensor:
    """(examples * count, steps): uniform numbers in [0, 1) for each candidate; 2 for the first of several."""
    rows = []
    for example in examples:
        for number in range(count):
            key = hashlib.sha256(repr((seed, number, example.prompt)).encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
            rows.append(torch.rand(steps, generator=generator) if number or count == 1 else torch.full((steps,), 2.0))
    return torch.stack(rows)


class SeededSampling(LogitsProcessor):
    """Leaves one token for each row: the one that its number picks from the distribution, or the most likely for a 2.

    `uniforms` is (rows, steps). Greedy search then takes that token. So the sample of a row does not depend on other
    rows, as it does where `generate` samples all rows from one generator.
    """

    def __init__(self, uniforms: Tensor, prompt_length: int) -> None:
        self.uniforms, self.prompt_length = uniforms, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(rows, time), (rows, vocabulary) -> (rows, vocabulary): minus infinity but for one token of each row."""
        numbers = self.uniforms[:, input_ids.shape[1] - self.prompt_length].to(scores.device)
        sampled = picked(scores.float().softmax(-1), numbers)[:, None]
        return torch.full_like(scores, -torch.inf).scatter(-1, sampled, scores.gather(-1, sampled))


def picked(shares: Tensor, numbers: Tensor, few: int = 256) -> Tensor:
    """(rows, vocabulary), (rows,) -> (rows,): the token at which the sum of the largest shares reaches the number.

    Of equal shares, the lower id comes first. To sort 150,000 shares takes longer than the model does, so the `few`
    largest are sorted first. Where they do not decide, all of that row are.
    """
    order = shares.topk(min(few, shares.shape[-1])).indices.sort(-1).values
    largest, places = shares.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    place = (largest.double().cumsum(-1) < numbers.double()[:, None]).sum(-1)
    # Rounding may leave the sum below the number: then the last token that has a share.
    place = torch.minimum(place, (largest > 0).sum(-1).clamp(min=1) - 1)
    place[numbers == 2.0] = 0
    place = place[:, None]
    tokens = order.gather(-1, places.gather(-1, place))[:, 0]
    if largest.shape[-1] < shares.shape[-1]:
        # Other tokens may have the smallest of these shares too.
        is_open = largest.gather(-1, place)[:, 0] <= largest[:, -1]
        if is_open.any():
            tokens[is_open] = picked(shares[is_open], numbers[is_open], shares.shape[-1])
    return tokens


def most_voted(candidates: Sequence[str], database: str | None, schema: Schema) -> str:
    """The first candidate with the most frequent result; without a database, with the most frequent canonical spelling.

    Queries that fail do not vote. Queries without a value vote only if no query has one. The earlier wins a tie.
    Source: Shi et al. 2022 (execution-based minimum Bayes risk), arXiv 2204.11454.
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
