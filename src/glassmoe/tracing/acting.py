"""The check by acting: features are switched off and doubled in the real model, patterns free, and what happens to the
target is compared with what the frozen model predicts.

The prediction is the sum over all paths from the feature to the target, also those through other features, whose
strengths follow their inputs. It leaves out that patterns change: attention, norms, gates, and which units are active.

Legend: B changes, S positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .agreement import ActedPair, TraceCheck
from .frozen import FrozenModel, HeldBlock
from .rows import Targets, backward

CHANGES: tuple[tuple[Literal["ablate", "double"], float], ...] = (("ablate", -1.0), ("double", 1.0))
ROWS_AT_ONCE = 16


@torch.no_grad()
def act(
    frozen: FrozenModel, target: Targets, readout_V: Tensor, features: Sequence[tuple[int, int, int, str]]
) -> TraceCheck:
    """Ablate and double features, one at a time. `target`: the first target, one row; `readout_V`: the combination of
    logits that it is, float64. `features`: (block, place among its active features, node, name)."""
    gradients: dict[int, Tensor] = {}

    def reached(block: HeldBlock, above_RPD: Tensor, _: Tensor) -> None:
        gradients[block.number] = above_RPD[0].clone()

    backward(frozen, target, reached, through=True)
    base = float(frozen.logits_V.double() @ readout_V)
    pairs: list[ActedPair] = []
    waiting: dict[int, list[tuple[ActedPair, int, Tensor]]] = {}
    for number, place, node, name in features:
        block = frozen.blocks[number]
        assert block.active is not None
        position = int(block.active.position_A[place])
        effect = float((block.active.writes_AD[place] * gradients[number][position]).sum())
        for change, amount in CHANGES:
            pair = ActedPair(node, name, change, amount * effect, 0.0)
            waiting.setdefault(number, []).append((pair, position, _written(block, place, amount)))
    for number, changes in waiting.items():
        for start in range(0, len(changes), ROWS_AT_ONCE):
            some = changes[start : start + ROWS_AT_ONCE]
            x_BSD = frozen.streams[number].repeat(len(some), 1, 1)
            for row, (_, position, delta_D) in enumerate(some):
                x_BSD[row, position] += delta_D
            logits_BV = frozen.logits_from(number, x_BSD).double()
            measured = (logits_BV @ readout_V - base).tolist()
            pairs += [replace(pair, measured=m) for (pair, _, _), m in zip(some, measured, strict=True)]
    order = {node: place for place, (_, _, node, _) in enumerate(features)}
    return compared(sorted(pairs, key=lambda pair: (order[pair.node], pair.change)))


def compared(pairs: list[ActedPair]) -> TraceCheck:
    """Correlation and agreement in sign of changes."""
    predicted = np.array([pair.predicted for pair in pairs])
    measured = np.array([pair.measured for pair in pairs])
    vary = len(pairs) > 1 and predicted.std() > 0 and measured.std() > 0
    correlation = float(np.corrcoef(predicted, measured)[0, 1]) if vary else None
    agreement = float((np.sign(predicted) == np.sign(measured)).mean()) if pairs else None
    return TraceCheck(correlation, agreement, pairs)


def _written(block: HeldBlock, place: int, amount: float) -> Tensor:
    """(D,): by how much what the layer writes changes when a feature's strength changes by `amount` times itself."""
    active, layer = block.active, block.layer
    assert active is not None and layer is not None
    if layer.writes != "nonlinear":
        return amount * active.writes_AD[place]
    features = layer.features(block.read_SD)
    position, feature = int(active.position_A[place]), int(active.feature_A[place])
    values = features.values.clone()
    values[position, feature] *= 1 + amount
    after: Tensor = layer.write(replace(features, values=values))[position]
    return after - layer.write(features)[position]
