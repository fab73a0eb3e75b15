"""Validation loss: cross-entropy in nats per token, perplexity, and bits per character where tokens are those."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from glassmoe.data.corpus import Rows
from glassmoe.data.tokens import CHARACTERS
from glassmoe.models import GlassForCausalLM
from glassmoe.models.loss import total_loss


@torch.no_grad()
def perplexity(
    model: GlassForCausalLM, rows: Rows, max_rows: int | None = None, micro_rows: int = 16
) -> dict[str, Any]:
    """The loss of a model on rows of games, every token of a row but the first being predicted once.

    Returns `loss` (nats per token), its standard error over rows, `perplexity`, `bits_per_character` (None where a
    token is a move) and how much was read.
    """
    count = len(rows) if max_rows is None else min(max_rows, len(rows))
    parts = [
        total_loss(model, rows, np.arange(start, min(start + micro_rows, count)), micro_rows)
        for start in range(0, count, micro_rows)
    ]
    loss_P, labels_P = (np.array(each, dtype=np.float64) for each in zip(*parts, strict=True))
    loss = loss_P.sum() / labels_P.sum()
    # A ratio's standard error, from the parts' residuals around it.
    spread = math.sqrt(((loss_P - loss * labels_P) ** 2).sum()) / float(labels_P.sum())
    return {
        "loss": float(loss),
        "loss_standard_error": spread if len(parts) > 1 else None,
        "perplexity": math.exp(loss),
        "bits_per_character": float(loss) / math.log(2) if rows.games.kind is CHARACTERS else None,
        "rows": count,
        "tokens": int(labels_P.sum()),
    }
