"""Generate text with a trained model: for one prompt, a file of prompts, or prompts typed in the terminal."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from recipes.language_model import tokens
from runner.errors import ConfigError, DataError
from runner.parts.counting import counted

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from recipes.language_model.settings import GenerationRequest

NUMBERS = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "repetition_penalty": float,
    "seed": int,
    "max_new_tokens": int,
}


@dataclasses.dataclass(frozen=True)
class Generator:
    """A trained model with what generation needs of its recipe."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    window: int
    """Context length of training, in tokens."""
    add_bos: bool
    """Whether documents began with a token of their own in training."""


def answer(generator: Generator, request: GenerationRequest) -> str:
    """The text that `relay predict` prints; empty where it was printed during generation."""
    if request.interactive:
        return converse(generator, request)
    prompts = [request.prompt]
    if request.prompts is not None:
        try:
            prompts = Path(request.prompts).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"{request.prompts} cannot be read: {error.strerror}.") from None
        except UnicodeDecodeError:
            raise DataError(f"{request.prompts} is not UTF-8 text: convert it first, for example with iconv.") from None
        if not prompts:
            raise DataError(f"{request.prompts} is empty: give a file with one prompt per line.")
    report_unknown(generator.tokenizer, "".join(prompts), set())
    prompts = [prompt for prompt in prompts for _ in range(request.samples)]
    if len(prompts) == 1 and request.stream:
        generate(generator, prompts, request, _show)
        return ""
    texts: list[str] = []
    starts = range(0, len(prompts), request.batch_size)
    for first in counted(starts, len(starts), "generation", "batches"):
        some = prompts[first : first + request.batch_size]
        continued = generate(generator, some, request)
        texts += [prompt + text for prompt, text in zip(some, continued, strict=True)]
    return "\n---\n".join(texts)


def generate(
    generator: Generator,
    prompts: list[str],
    request: GenerationRequest,
    show: Callable[[str], None] | None = None,
) -> list[str]:
    """The continuation of each prompt. With `show`, for one prompt: also pass the text to it piece by piece.

    Keys and values are cached. When a text outgrows the window that the model was trained on, generation continues
    from the second half of the window, because a small model writes nonsense beyond it.
    """
    import torch

    model, tokenizer, window = generator.model, generator.tokenizer, generator.window
    torch.manual_seed(request.seed)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    stop = tokenizer.eos_token_id if request.stop else None
    # An empty text begins behind the end of another where a model has no token for the beginning.
    begin = next(each for each in (tokenizer.bos_token_id, tokenizer.eos_token_id, pad) if each is not None)
    known = []
    for prompt, ids in zip(prompts, tokens.encode(tokenizer, prompts), strict=True):
        begins = not prompt or (request.begin and generator.add_bos and tokenizer.bos_token_id is not None)
        known.append(([begin] if begins else []) + ids.tolist())
    written: list[list[int]] = [[] for _ in prompts]
    streamer = Parts(tokenizer, show) if show else None
    if show:
        show(prompts[0])
    active = list(range(len(prompts)))
    while active:
        rows = [known[each] + written[each] for each in active]
        rows = [row if len(row) < window else row[-max(1, window // 2) :] for row in rows]
        longest = max(len(row) for row in rows)
        # All active rows have the same number of new tokens.
        count = min(request.max_new_tokens - len(written[active[0]]), window - longest)
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=model.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
        sampling = {"do_sample": False} if request.temperature == 0 else {
            "do_sample": True,
            "temperature": request.temperature,
            "top_k": request.top_k,
            "top_p": request.top_p,
        }  # fmt: skip
        found = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=count,
            repetition_penalty=request.repetition_penalty,
            eos_token_id=stop,
            pad_token_id=pad,
            streamer=streamer,
            **sampling,
        )
        unfinished = []
        for each, new in zip(active, cast("Tensor", found)[:, longest:].tolist(), strict=True):
            ended = stop is not None and stop in new
            written[each] += new[: new.index(stop)] if ended else new
            if not ended and len(written[each]) < request.max_new_tokens:
                unfinished.append(each)
        active = unfinished
    if show:
        show("\n")
    return [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in written]


SAMPLES = 3
"""Texts of an evaluation that a report shows with the model's continuation."""
PROMPT_TOKENS = 32
"""A sample's prompt has at most as many tokens."""


def continuations(generator: Generator, rows: list[list[int]], length: int) -> list[dict[str, str]]:
    """The beginning of each row of token ids with `length` tokens by the model and with those that follow in the row.

    Sampled as `relay predict` does by default. A row whose beginning is empty text has no continuation.
    """
    from recipes.language_model.settings import GenerationRequest

    def text(ids: list[int]) -> str:
        return str(generator.tokenizer.decode(ids, skip_special_tokens=True))

    cuts = [min(PROMPT_TOKENS, len(row) // 2) for row in rows]
    found = [
        {"prompt": text(row[:cut]), "model": "", "data": text(row[cut : cut + length])}
        for row, cut in zip(rows, cuts, strict=True)
    ]
    begun = [sample for sample in found if sample["prompt"]]
    request = GenerationRequest(max_new_tokens=length, begin=False)
    written = generate(generator, [sample["prompt"] for sample in begun], request) if begun else []
    for sample, generated in zip(begun, written, strict=True):
        sample["model"] = generated
    return found


def report_unknown(tokenizer: PreTrainedTokenizerFast, prompt: str, reported: set[str]) -> None:
    """Print the characters of a prompt that the tokenizer does not know, except those in `reported`; add them to it."""
    if tokenizer.unk_token_id is None:
        return
    seen = sorted(set(prompt) - reported)
    ids = tokens.encode(tokenizer, seen)
    unknown = [character for character, own in zip(seen, ids, strict=True) if tokenizer.unk_token_id in own]
    reported.update(unknown)
    if unknown:
        shown = " ".join(map(repr, unknown[:20])) + (" ..." if len(unknown) > 20 else "")
        print(
            f"note: the model reads these characters as {tokenizer.unk_token}, because training had none of them: "
            f"{shown}",
            file=sys.stderr,
            flush=True,
        )


class Parts:
    """Shows new text as soon as its characters are complete; the streamer of transformers' `generate`."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, show: Callable[[str], None]) -> None:
        self.tokenizer, self.show = tokenizer, show
        self.ids: list[int] = []
        self.shown = 0
        self.is_prompt = True

    def put(self, value: Tensor) -> None:
        """Take the next token ids; the first call brings the prompt."""
        if self.is_prompt:
            self.is_prompt = False
            return
        self.ids += value.reshape(-1).tolist()
        # The last character may lack some of its bytes.
        text = str(self.tokenizer.decode(self.ids, skip_special_tokens=True)).rstrip("\ufffd")
        if len(text) > self.shown:
            self.show(text[self.shown :])
            self.shown = len(text)

    def end(self) -> None:
        """Expect a prompt next."""
        self.is_prompt = True


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def converse(generator: Generator, request: GenerationRequest) -> str:
    """Read prompts and commands until the input ends."""
    reported: set[str] = set()
    print(f"Type a prompt, or /{' N, /'.join(NUMBERS)} N, /status or /quit.")
    while True:
        try:
            line = input("> ")
        except EOFError:
            return ""
        if line.strip() in ("/quit", "/exit"):
            return ""
        if line.startswith("/"):
            request = changed(request, line[1:].split())
        else:
            report_unknown(generator.tokenizer, line, reported)
            generate(generator, [line], request, _show)


def changed(request: GenerationRequest, words: list[str]) -> GenerationRequest:
    """The request after a command such as `/temperature 0.8` or `/set temperature=0.8`.

    An invalid command, `/status` and `/help` print a line and change nothing.
    """
    if words and words[0] == "set":
        words = " ".join(words[1:]).replace("=", " ").split()
    name = words[0].replace("-", "_") if words else ""
    if name == "status":
        print("  ".join(f"{each} = {getattr(request, each)}" for each in NUMBERS))
        return request
    try:
        new = dataclasses.replace(request, **{name: NUMBERS[name](words[1])})
    except (KeyError, IndexError, ValueError):
        print(f"Commands: /{' N, /'.join(NUMBERS)} N, /status or /quit.")
        return request
    except ConfigError as error:
        # In a conversation, commands take the place of flags.
        print(str(error).replace("type --", "type /"))
        return request
    print(f"{name} = {getattr(new, name)}")
    return new
