"""Generating text with a model, all at once or token by token."""

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
from glassmoe.model.families import context_of, ends_of

INCOMPLETE = "\ufffd"
"""The character that a decoder writes for an incomplete character."""


@dataclass(frozen=True)
class Sampling:
    """How text is sampled."""

    tokens: int
    """Largest number of tokens to add to the prompt."""
    samples: int = 1
    """Number of texts."""
    temperature: float = 0.0
    """Temperature of sampling; 0 takes the most likely token every time."""
    top_p: float = 1.0
    """Sample from the most likely tokens whose probabilities sum to this share."""
    frequency_penalty: float = 0.0
    """Amount by which a logit falls for each time that its token was written."""
    seed: int = 0
    """Seed of sampling."""
    top_k: int = 0
    """Sample from this many of the most likely tokens; 0 for all."""
    cache: bool = True
    """Whether keys and values are cached, which changes the speed only."""

    def __post_init__(self) -> None:
        for name, value in (("tokens", self.tokens), ("samples", self.samples)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected a whole number above 0")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; expected a number of tokens, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected a share above 0 and at most 1")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; expected 0 or more")


class FrequencyPenalty(LogitsProcessor):  # type: ignore[misc]
    """Lowers the logit of every token by `penalty` for each time that it occurs after the `prompt` first tokens."""

    def __init__(self, penalty: float, prompt: int):
        self.penalty, self.prompt = penalty, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        written_BN = input_ids[:, self.prompt :]
        counts = torch.zeros_like(scores).scatter_add_(1, written_BN, torch.ones_like(written_BN, dtype=scores.dtype))
        return scores - self.penalty * counts


class TextStream:
    """A streamer of transformers that writes the text of one continuation, prompt included, token by token. A token
    that ends within a character waits for the next token."""

    def __init__(self, kind: TokenKind, ends: Sequence[int], write: Callable[[str], object]):
        self.kind, self.ends, self.write = kind, ends, write
        self.ids: list[int] = []
        self.shown = 0

    def put(self, ids: Tensor) -> None:
        new = ids.flatten().tolist()
        self.ids += [token for token in new if len(new) > 1 or token not in self.ends]
        self._show(self.kind.decode(self.ids), whole=False)

    def end(self) -> None:
        self._show(self.kind.decode(self.ids), whole=True)

    def _show(self, text: str, whole: bool) -> None:
        sure = len(text) if whole else len(text.rstrip(INCOMPLETE))
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
    """`samples` texts: the prompt and up to `tokens` more; `temperature` 0 takes the most likely token every time.

    A model of moves reads `; e2e4 e7e5`, and also `;1.e4 e5`, which is replayed. A model of text begins a document with
    the prompt, which may be empty, and stops at the end of the document; it needs its `kind` of tokens, which holds the
    tokenizer (`Subject.kind`). ValueError for an empty prompt of a game, for a prompt outside the vocabulary or with an
    illegal move, and for one that fills the context.
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
    """Token ids of the continuations, prompt included, and the number of tokens in the prompt. Prompts as in
    `continuations`; the model may be of any family. `write` is called with each piece of the text as it is generated;
    ValueError for more than one sample then."""
    if write is not None and sampling.samples > 1:
        raise ValueError(f"{sampling.samples} samples are generated together and cannot be streamed; pass 1")
    if not prompt.strip() and kind.prompt:
        raise ValueError(f"the prompt is empty; a {kind.unit.removesuffix('s')} begins with {kind.prompt!r}")
    prompt_ids = np.array(kind.encode_prompt(prompt))
    ids = torch.from_numpy(prompt_ids).long().to(next(model.parameters()).device)
    context = context_of(model)
    room = context - len(ids)
    if room < 1:
        raise ValueError(f"the prompt has {len(ids)} tokens and the model's context is {context}")
    torch.manual_seed(sampling.seed)
    prompts = ids.expand(sampling.samples, -1)
    settings: dict[str, Any] = {"do_sample": False, "use_cache": sampling.cache}
    if sampling.temperature > 0:
        # The default of transformers for top_k is 50 tokens.
        settings |= {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p")} | {"do_sample": True}
    if sampling.frequency_penalty:
        penalty = FrequencyPenalty(sampling.frequency_penalty, len(ids))
        settings["logits_processor"] = LogitsProcessorList([penalty])
    ends = sorted({kind.start, *ends_of(model)}) if kind.tokenizer is not None else []
    if ends:
        settings |= {"pad_token_id": kind.start, "eos_token_id": ends}  # the former pads samples that end early
    if write is not None:
        settings["streamer"] = TextStream(kind, ends, write)
    rows = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=min(sampling.tokens, room), **settings
    )
    return [_until_end(row.cpu().numpy(), len(ids), ends) for row in rows], len(ids)


def _until_end(row: Tokens, prompt: int, ends: list[int]) -> Tokens:
    """A generated row without the token that ends its document and the padding after it. `prompt`: its length."""
    places = np.flatnonzero(np.isin(row[prompt:], ends))
    return row[: prompt + int(places[0])] if places.size else row
