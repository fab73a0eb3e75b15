"""Cross-entropy over a large vocabulary without the logits of all tokens.

Legend: T tokens, D model width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED = -100
MOST_LOGITS = 1 << 26
"""Number of logits that are computed at once, 256 MiB in float32."""


def summed_loss(hidden_TD: Tensor, labels_T: Tensor, head: Any) -> Tensor:
    """Summed cross-entropy of `head(hidden)`, a chunk of tokens at a time. The logits of a chunk are computed again in
    the backward pass, so that those of all tokens never exist together."""
    size = max(1, MOST_LOGITS // head.weight.shape[0])

    def chunk(hidden: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(head(hidden).float(), labels, ignore_index=IGNORED, reduction="sum")

    losses = [
        checkpoint(chunk, hidden, labels, use_reentrant=False, preserve_rng_state=False)
        for hidden, labels in zip(hidden_TD.split(size), labels_T.split(size), strict=True)
    ]
    return torch.stack(losses).sum()
