"""Text from a model."""

from __future__ import annotations

import numpy as np
import torch

from glassmoe.data.chess_moves import moves_of_line
from glassmoe.data.tokens import MOVES, TEXT, TokenKind, Tokens, token_kind
from glassmoe.models import GlassForCausalLM


@torch.no_grad()
def continuations(
    model: GlassForCausalLM,
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
    if not prompt.strip() and kind.name != TEXT:
        raise ValueError(f"the prompt is empty; a game begins with {kind.prompt!r}")
    given_ids = moves_of_line(prompt) if kind is MOVES and "." in prompt else kind.encode(prompt)
    ids = torch.from_numpy(np.array(given_ids)).long().to(next(model.parameters()).device)
    room = model.config.context - len(ids)
    if room < 1:
        raise ValueError(f"the prompt has {len(ids)} tokens and the model's context is {model.config.context}")
    torch.manual_seed(seed)
    given = ids.expand(samples, -1)
    # top_k=0: sample from the whole distribution; transformers' own default keeps 50 tokens.
    sampling: dict[str, float] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0}
    if kind.name == TEXT:
        sampling["pad_token_id"] = kind.start  # what fills up the samples that end before others
    made = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=min(tokens, room), **sampling)
    return [kind.decode(_until_end(row.cpu().numpy(), len(ids), kind)) for row in made]


def _until_end(row: Tokens, given: int, kind: TokenKind) -> Tokens:
    """A made row without the token that ended its document and what fills it up after that."""
    ends = np.flatnonzero(row[given:] == kind.start) if kind.name == TEXT else np.zeros(0)
    return row[: given + int(ends[0])] if ends.size else row
