"""Next-token cross-entropy of padded rows, in nats; training and evaluation share this one definition.

Legend: B rows, N tokens of a row, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import chunked_loss
from .chunked_loss import IGNORED


def inputs_and_labels(tokens_BN: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """The first N - 1 tokens of each row, and the last N - 1 as labels; padding (at and after `lengths_B`) is
    ignored."""
    position_N = torch.arange(tokens_BN.shape[1], device=tokens_BN.device)
    labels_BN = tokens_BN.masked_fill(position_N >= lengths_B.unsqueeze(1), IGNORED)
    return tokens_BN[:, :-1], labels_BN[:, 1:]


def next_token_loss(model: Any, tokens_BN: Tensor, lengths_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed cross-entropy over all labels (float32, differentiable), and the model's named training losses."""
    inputs, labels = inputs_and_labels(tokens_BN, lengths_B)
    config: Any = getattr(model, "config", None)
    ours = getattr(config, "model_type", "") == "glassmoe"
    if ours and labels.numel() * config.vocab_size > chunked_loss.MOST_LOGITS:
        output = model(input_ids=inputs, use_cache=False, targets=labels)
        return output.loss, output.losses
    output = model(input_ids=inputs, use_cache=False)
    logits = output.logits.flatten(0, 1).float()
    # Models of other makers have no training losses of their layers.
    losses = getattr(output, "losses", None) or {}
    return F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum"), losses


def count_labels(lengths_B: Any) -> int:
    """How many labels rows of these lengths have: every token but the first."""
    return int((lengths_B - 1).clip(min=0).sum())


@torch.no_grad()
def total_loss(model: Any, rows: Any, indices: Any, micro_rows: int, passes: int = 0) -> tuple[float, int]:
    """Summed cross-entropy in nats and number of labels over the rows of a `data.corpus.Rows` named by `indices`. The
    model is called at least `passes` times: processes that share its weights call it equally often."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, labels = 0.0, 0
    for start in range(0, max(len(indices), passes * micro_rows), micro_rows):
        counted = start < len(indices)
        tokens, lengths = rows.batch(indices[start : start + micro_rows] if counted else [0])
        lengths = lengths if counted else lengths * 0
        loss, _ = next_token_loss(
            model, torch.from_numpy(tokens).to(device).long(), torch.from_numpy(lengths).to(device)
        )
        total += float(loss)
        labels += count_labels(lengths)
    model.train(was_training)
    return total, labels
