"""Writing text with a trained model: one beginning, a file of them, or a conversation in the terminal."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipes.language_model import tokens
from runner.errors import ConfigError, DataError

NUMBERS = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "repetition_penalty": float,
    "seed": int,
    "max_new_tokens": int,
}


def answer(recipe: Any, model: Any, request: Any) -> str:
    """What `relay predict` prints; a text that was shown while it was written is not printed once more."""
    if request.interactive:
        return converse(recipe, model, request)
    prompts = [request.prompt]
    if request.prompts is not None:
        try:
            prompts = Path(request.prompts).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"{request.prompts} cannot be read: {error.strerror}.") from None
        except UnicodeDecodeError:
            raise DataError(f"{request.prompts} is not UTF-8 text: convert it first, for example with iconv.") from None
        if not prompts:
            raise DataError(f"{request.prompts} is empty: give a file with one beginning per line.")
    tell_unknown(recipe.tokenizer, "".join(prompts), set())
    prompts = [prompt for prompt in prompts for _ in range(request.samples)]
    if len(prompts) == 1 and request.stream:
        follow(recipe, model, prompts, request, _show)
        return ""
    texts: list[str] = []
    for first in range(0, len(prompts), request.batch_size):
        some = prompts[first : first + request.batch_size]
        following = follow(recipe, model, some, request)
        texts += [prompt + text for prompt, text in zip(some, following, strict=True)]
    return "\n---\n".join(texts)


def follow(
    recipe: Any, model: Any, prompts: list[str], request: Any, show: Callable[[str], None] | None = None
) -> list[str]:
    """What follows each prompt; with `show`, for one prompt, in parts as they come.

    Keys and values of what was read are kept. Where a text outgrows the window that the model was trained on, it goes
    on from the window's second half: beyond it, a small model writes nonsense.
    """
    import torch

    tokenizer, window = recipe.tokenizer, recipe.data_settings.max_seq_length
    torch.manual_seed(request.seed)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    stop = tokenizer.eos_token_id if request.stop else None
    known = []
    for prompt, ids in zip(prompts, tokens.encode(tokenizer, prompts), strict=True):
        begins = not prompt or (request.begin and recipe.data_settings.add_bos)
        known.append(([tokenizer.bos_token_id] if begins else []) + ids.tolist())
    written: list[list[int]] = [[] for _ in prompts]
    streamer = Parts(tokenizer, show) if show else None
    if show:
        show(prompts[0])
    active = list(range(len(prompts)))
    while active:
        rows = [known[each] + written[each] for each in active]
        rows = [row if len(row) < window else row[-max(1, window // 2) :] for row in rows]
        longest = max(len(row) for row in rows)
        # All active rows have written as much as each other.
        count = min(request.max_new_tokens - len(written[active[0]]), window - longest)
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=model.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
        drawing = {"do_sample": False} if request.temperature == 0 else {
            "do_sample": True,
            "temperature": request.temperature,
            "top_k": request.top_k,
            "top_p": request.top_p,
        }  # fmt: skip
        found = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=count,
            repetition_penalty=request.repetition_penalty,
            eos_token_id=stop,
            pad_token_id=pad,
            streamer=streamer,
            **drawing,
        )
        going_on = []
        for each, new in zip(active, found[:, longest:].tolist(), strict=True):
            ended = stop is not None and stop in new
            written[each] += new[: new.index(stop)] if ended else new
            if not ended and len(written[each]) < request.max_new_tokens:
                going_on.append(each)
        active = going_on
    if show:
        show("\n")
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in written]


def tell_unknown(tokenizer: Any, prompt: str, told: set[str]) -> None:
    """Say which characters of a prompt the tokenizer has not, once each; `told` are those that were said before."""
    if tokenizer.unk_token_id is None:
        return
    seen = sorted(set(prompt) - told)
    ids = tokens.encode(tokenizer, seen)
    unknown = [character for character, own in zip(seen, ids, strict=True) if tokenizer.unk_token_id in own]
    told.update(unknown)
    if unknown:
        shown = " ".join(map(repr, unknown[:20])) + (" ..." if len(unknown) > 20 else "")
        print(f"note: never seen in training, and read as {tokenizer.unk_token}: {shown}", file=sys.stderr, flush=True)


class Parts:
    """Shows new text as soon as its characters are whole; `generate` calls it a streamer."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:
        self.tokenizer, self.show = tokenizer, show
        self.ids: list[int] = []
        self.shown = 0
        self.is_prompt = True

    def put(self, value: Any) -> None:
        """The prompt comes first, then token after token."""
        if self.is_prompt:
            self.is_prompt = False
            return
        self.ids += value.reshape(-1).tolist()
        # A character of several bytes may not be whole yet.
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True).rstrip("\ufffd")
        if len(text) > self.shown:
            self.show(text[self.shown :])
            self.shown = len(text)

    def end(self) -> None:
        """A prompt may come again."""
        self.is_prompt = True


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def converse(recipe: Any, model: Any, request: Any) -> str:
    """Read prompts and commands until the input ends."""
    told: set[str] = set()
    print(f"Type the beginning of a text, or /{' N, /'.join(NUMBERS)} N, /status or /quit.")
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
            tell_unknown(recipe.tokenizer, line, told)
            follow(recipe, model, [line], request, _show)


def changed(request: Any, words: list[str]) -> Any:
    """The request with what `/temperature 0.8` or `/set temperature=0.8` says; unchanged, and told why, where that
    cannot be, or where `/status` or `/help` only ask."""
    if words and words[0] == "set":
        words = " ".join(words[1:]).replace("=", " ").split()
    name = words[0].replace("-", "_") if words else ""
    if name == "status":
        print("  ".join(f"{each} = {getattr(request, each)}" for each in NUMBERS))
        return request
    try:
        new = dataclasses.replace(request, **{name: NUMBERS[name](words[1])})
    except (KeyError, IndexError, ValueError):
        print(f"Wanted: /{' N, /'.join(NUMBERS)} N, /status or /quit.")
        return request
    except ConfigError as error:
        print(error)
        return request
    print(f"{name} = {getattr(new, name)}")
    return new
