"""Text from a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from glassmoe.data.chess_moves import moves_of_line
from glassmoe.data.tokens import MOVES, TEXT, TokenKind, Tokens, token_kind


@dataclass(frozen=True)
class Sampling:
    """How text is drawn: `tokens` to add at most, `samples` of it; `temperature` 0 takes the likeliest token each time;
    `top_p`, from the likeliest tokens that have this share together; `frequency_penalty`, how much a logit falls for
    each time that its token was written."""

    tokens: int
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    frequency_penalty: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
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
    it holds the tokenizer (`Loaded.kind`). ValueError for an empty prompt of a game, one outside the vocabulary or with
    an illegal move, or one that fills the context.
    """
    kind = token_kind(model.config.tokens) if kind is None else kind
    rows, _ = sampled(model, prompt, kind, Sampling(tokens, samples, temperature, seed=seed))
    return [kind.decode(row) for row in rows]


@torch.no_grad()
def sampled(model: Any, prompt: str, kind: TokenKind, sampling: Sampling) -> tuple[list[Tokens], int]:
    """Token ids of the continuations, prompt included, and how many of them the prompt has. What `continuations` says
    of prompts holds here; the model may be of any family."""
    if not prompt.strip() and kind.name != TEXT:
        raise ValueError(f"the prompt is empty; a game begins with {kind.prompt!r}")
    given_ids = moves_of_line(prompt) if kind is MOVES and "." in prompt else kind.encode(prompt)
    ids = torch.from_numpy(np.array(given_ids)).long().to(next(model.parameters()).device)
    context = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    room = context - len(ids)
    if room < 1:
        raise ValueError(f"the prompt has {len(ids)} tokens and the model's context is {context}")
    torch.manual_seed(sampling.seed)
    given = ids.expand(sampling.samples, -1)
    # top_k=0: sample from the whole distribution; transformers' own default keeps 50 tokens.
    settings: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        settings = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": sampling.top_p}
    if sampling.frequency_penalty:
        penalty = FrequencyPenalty(sampling.frequency_penalty, len(ids))
        settings["logits_processor"] = LogitsProcessorList([penalty])
    eos = model.config.eos_token_id
    eos = [] if eos is None else [eos] if isinstance(eos, int) else eos
    ends = sorted({kind.start, *eos}) if kind.name == TEXT else []
    if ends:
        settings |= {"pad_token_id": kind.start, "eos_token_id": ends}  # the former fills up samples that end early
    made = model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=min(sampling.tokens, room), **settings
    )
    return [_until_end(row.cpu().numpy(), len(ids), ends) for row in made], len(ids)


def _until_end(row: Tokens, given: int, ends: list[int]) -> Tokens:
    """A made row without the token that ended its document and what fills it up after that."""
    found = np.flatnonzero(np.isin(row[given:], ends))
    return row[: given + int(found[0])] if found.size else row
