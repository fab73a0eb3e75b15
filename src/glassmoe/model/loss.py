"""Next-token cross-entropy of padded rows, in nats; training and evaluation share this one definition.

Legend: B rows, N tokens of a row, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glassmoe.device import moved

from . import chunked_loss
from .attention import document_positions, within_documents
from .chunked_loss import IGNORED


def inputs_and_labels(tokens_BN: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """The first N - 1 tokens of each row, and the last N - 1 as labels; padding (at and after `lengths_B`) is
    ignored."""
    position_N = torch.arange(tokens_BN.shape[1], device=tokens_BN.device)
    labels_BN = tokens_BN.masked_fill(position_N >= lengths_B.unsqueeze(1), IGNORED)
    return tokens_BN[:, :-1], labels_BN[:, 1:]


def next_token_loss(
    model: Any, tokens_BN: Tensor, lengths_B: Tensor, documents_BN: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed cross-entropy over all labels (float32, differentiable), and the model's named training losses.

    `documents_BN`: the number of each token's document, where attention and positions stay within documents. The last
    token of a document still has a label, the first token of the next one, which says that it ends.
    """
    inputs, labels = inputs_and_labels(tokens_BN, lengths_B)
    config: Any = getattr(model, "config", None)
    ours = getattr(config, "model_type", "") == "glassmoe"
    masks = {} if documents_BN is None else mask_inputs(model, documents_BN[:, :-1])
    if ours and labels.numel() * config.vocab_size > chunked_loss.MOST_LOGITS:
        output = model(input_ids=inputs, use_cache=False, targets=labels, **masks)
        return output.loss, output.losses
    output = model(input_ids=inputs, use_cache=False, **masks)
    logits = output.logits.flatten(0, 1).float()
    # Models of other makers have no training losses of their layers.
    losses = getattr(output, "losses", None) or {}
    return F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum"), losses


def mask_inputs(model: Any, documents_BS: Tensor) -> dict[str, Tensor]:
    """What a causal language model takes to read the documents of packed rows one by one. In models of other makers
    transformers finds the documents by their positions."""
    if getattr(getattr(model, "config", None), "model_type", "") == "glassmoe":
        return within_documents(documents_BS)
    return {"position_ids": document_positions(documents_BS)}


def count_labels(lengths_B: Any) -> int:
    """How many labels rows of these lengths have: every token but the first."""
    return int((lengths_B - 1).clip(min=0).sum())


@torch.no_grad()
def total_loss(
    model: Any, rows: Any, indices: Any, micro_rows: int, passes: int = 0, document_mask: bool = False
) -> tuple[float, int]:
    """Summed cross-entropy in nats and number of labels over the rows of a `data.corpus.Rows` named by `indices`. The
    model is called at least `passes` times: processes that share its weights call it equally often. `document_mask`:
    whether attention and positions stay within documents."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, labels = torch.zeros((), dtype=torch.float64, device=device), 0
    for start in range(0, max(len(indices), passes * micro_rows), micro_rows):
        counted = start < len(indices)
        numbers = indices[start : start + micro_rows] if counted else [0]
        tokens, lengths = rows.batch(numbers)
        lengths = lengths if counted else lengths * 0
        documents = moved(rows.documents(numbers), device) if document_mask else None
        loss, _ = next_token_loss(model, moved(tokens, device).long(), moved(lengths, device), documents)
        total += loss.double()
        labels += count_labels(lengths)
    model.train(was_training)
    return float(total), labels
