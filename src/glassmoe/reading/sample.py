"""Text from a model."""

from __future__ import annotations

import numpy as np
import torch

from glassmoe.data.chess_moves import moves_of_line
from glassmoe.data.tokens import MOVES, token_kind
from glassmoe.models import GlassForCausalLM


@torch.no_grad()
def continuations(
    model: GlassForCausalLM,
    prompt: str,
    tokens: int,
    temperature: float = 0.0,
    samples: int = 1,
    seed: int = 0,
) -> list[str]:
    """The prompt and up to `tokens` more, `samples` times; `temperature` 0 takes the likeliest token each time.

    A model that reads moves takes `; e2e4 e7e5`, and also `;1.e4 e5`, which is played for it. ValueError for an empty
    prompt, one outside the vocabulary or with an illegal move, or one that fills the context.
    """
    kind = token_kind(model.config.tokens)
    if not prompt.strip():
        raise ValueError(f"the prompt is empty; a game begins with {kind.prompt!r}")
    given_ids = moves_of_line(prompt) if kind is MOVES and "." in prompt else kind.encode(prompt)
    ids = torch.from_numpy(np.array(given_ids)).long().to(next(model.parameters()).device)
    room = model.config.context - len(ids)
    if room < 1:
        raise ValueError(f"the prompt has {len(ids)} tokens and the model's context is {model.config.context}")
    torch.manual_seed(seed)
    given = ids.expand(samples, -1)
    # top_k=0: sample from the whole distribution; transformers' own default keeps 50 tokens.
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    made = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=min(tokens, room), **sampling)
    return [kind.decode(row.cpu().numpy()) for row in made]
