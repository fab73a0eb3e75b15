"""Text from a model, whole or token by token as it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from glassmoe.data.domains import token_kind
from glassmoe.data.tokens import TokenKind, Tokens

MENDED = "\ufffd"
"""What a decoder writes for bytes that are no whole character."""


@dataclass(frozen=True)
class Sampling:
    """How text is drawn: `tokens` to add at most, `samples` of it; `temperature` 0 takes the likeliest token each time;
    `top_p`, from the likeliest tokens that have this share together; `top_k`, from so many likeliest ones, 0 for all;
    `frequency_penalty`, how much a logit falls for each time that its token was written. `cache`: keep keys and values
    of what was read, which changes the speed and nothing else."""

    tokens: int
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    frequency_penalty: float = 0.0
    seed: int = 0
    top_k: int = 0
    cache: bool = True

    def __post_init__(self) -> None:
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; give a number of tokens, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, a share: give a number above 0, at most 1")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; give 0 or more")


class FrequencyPenalty(LogitsProcessor):  # type: ignore[misc]
    """Lowers the logit of every token by `penalty` for each time that it stands after the first `given` ones."""

    def __init__(self, penalty: float, given: int):
        self.penalty, self.given = penalty, given

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        written_BN = input_ids[:, self.given :]
        counts = torch.zeros_like(scores).scatter_add_(1, written_BN, torch.ones_like(written_BN, dtype=scores.dtype))
        return scores - self.penalty * counts


class Written:
    """Hands on the text of one continuation, its prompt included, as its tokens are made (a streamer of transformers).
    A token that ends within a character waits for the next."""

    def __init__(self, kind: TokenKind, ends: Sequence[int], write: Callable[[str], object]):
        self.kind, self.ends, self.write = kind, ends, write
        self.ids: list[int] = []
        self.shown = 0

    def put(self, ids: Tensor) -> None:
        new = ids.flatten().tolist()
        self.ids += [each for each in new if len(new) > 1 or each not in self.ends]
        self._show(self.kind.decode(self.ids), whole=False)

    def end(self) -> None:
        self._show(self.kind.decode(self.ids), whole=True)

    def _show(self, text: str, whole: bool) -> None:
        sure = len(text) if whole else len(text.rstrip(MENDED))
        if sure > self.shown:
            self.write(text[self.shown : sure])
            self.shown = sure


def continuations(
    model: Any,
    prompt: str,
    tokens: int,
    temperature: float = 0.0,
    samples: int = 1,
    seed: int = 0,
    kind: TokenKind | None = None,
) -> list[str]:
    """The prompt and up to `tokens` more, `samples` times; `temperature` 0 takes the likeliest token each time.

    A model that reads moves takes `; e2e4 e7e5`, and also `;1.e4 e5`, which is played for it. A model of text begins a
    document with the prompt, which may be empty, and ends where it ends the document; its `kind` has to be given, as
    it holds the tokenizer (`Subject.kind`). ValueError for an empty prompt of a game, one outside the vocabulary or
    with an illegal move, or one that fills the context.
    """
    kind = token_kind(model.config.tokens) if kind is None else kind
    rows, _ = sampled(model, prompt, kind, Sampling(tokens, samples, temperature, seed=seed))
    return [kind.decode(row) for row in rows]


@torch.no_grad()
def sampled(
    model: Any,
    prompt: str,
    kind: TokenKind,
    sampling: Sampling,
    write: Callable[[str], object] | None = None,
) -> tuple[list[Tokens], int]:
    """Token ids of the continuations, prompt included, and how many of them the prompt has. What `continuations` says
    of prompts holds here; the model may be of any family. `write` is called with each piece of the text as it is made;
    ValueError for several samples then."""
    if write is not None and sampling.samples > 1:
        raise ValueError(f"{sampling.samples} samples are made side by side and cannot be streamed; give one")
    if not prompt.strip() and kind.prompt:
        raise ValueError(f"the prompt is empty; a {kind.unit.removesuffix('s')} begins with {kind.prompt!r}")
    prompt_ids = np.array(kind.encode_prompt(prompt))
    ids = torch.from_numpy(prompt_ids).long().to(next(model.parameters()).device)
    context = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    room = context - len(ids)
    if room < 1:
        raise ValueError(f"the prompt has {len(ids)} tokens and the model's context is {context}")
    torch.manual_seed(sampling.seed)
    given = ids.expand(sampling.samples, -1)
    settings: dict[str, Any] = {"do_sample": False, "use_cache": sampling.cache}
    if sampling.temperature > 0:
        # transformers' own default of top_k keeps 50 tokens.
        settings |= {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p")} | {"do_sample": True}
    if sampling.frequency_penalty:
        penalty = FrequencyPenalty(sampling.frequency_penalty, len(ids))
        settings["logits_processor"] = LogitsProcessorList([penalty])
    eos = model.config.eos_token_id
    eos = [] if eos is None else [eos] if isinstance(eos, int) else eos
    ends = sorted({kind.start, *eos}) if kind.tokenizer is not None else []
    if ends:
        settings |= {"pad_token_id": kind.start, "eos_token_id": ends}  # the former fills up samples that end early
    if write is not None:
        settings["streamer"] = Written(kind, ends, write)
    made = model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=min(sampling.tokens, room), **settings
    )
    return [_until_end(row.cpu().numpy(), len(ids), ends) for row in made], len(ids)


def _until_end(row: Tokens, given: int, ends: list[int]) -> Tokens:
    """A made row without the token that ended its document and what fills it up after that."""
    found = np.flatnonzero(np.isin(row[given:], ends))
    return row[: given + int(found[0])] if found.size else row
