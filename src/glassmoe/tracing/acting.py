"""The check by acting: features are switched off and doubled in the real model, patterns free, and what happens to the
target is compared with what the frozen model predicts.

The prediction is the sum over all paths from the feature to the target, also those through other features, whose
strengths follow their inputs. It leaves out that patterns change: attention, norms, gates, and which units are active.
A second prediction counts, to first order, that the scales of norms follow the stream.

Legend: B changes, S positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .agreement import ActedPair, Change, TraceCheck
from .frozen import FrozenModel, HeldBlock
from .holding import Pattern, logits_holding
from .rows import Targets, backward

CHANGES: tuple[tuple[Change, float], ...] = (("ablate", -1.0), ("double", 1.0))
ROWS_AT_ONCE = 16

Acted = tuple[int, int, int, str]
"""A feature: block, place among the active features of the block, node, name."""


@dataclass(frozen=True)
class _Asked:
    """A change before it is made: what is added to the stream after a block at a position."""

    pair: ActedPair
    block: int
    position: int
    delta_D: Tensor


def act(
    frozen: FrozenModel,
    target: Targets,
    readout_V: Tensor,
    features: Sequence[Acted],
    holds: Sequence[frozenset[Pattern]] = (),
) -> TraceCheck:
    """Ablate and double features, one at a time, patterns free. `target`: the first target, one row; `readout_V`: the
    combination of logits that it is, float64. `holds`: sets of patterns with which the changes are made once more."""
    free, *others = act_holding(frozen, target, readout_V, features, [frozenset(), *holds])
    return replace(compared(free), holding=[[pair.measured for pair in pairs] for pairs in others])


@torch.no_grad()
def act_holding(
    frozen: FrozenModel,
    target: Targets,
    readout_V: Tensor,
    features: Sequence[Acted],
    holds: Sequence[frozenset[Pattern]],
    changes: Sequence[tuple[Change, float]] = CHANGES,
) -> list[list[ActedPair]]:
    """For each of `holds`, the same changes in the model with these patterns held. `changes`: names, and by how many
    times its strength each feature is changed."""
    asked = _asked(frozen, target, features, changes)
    base = float(frozen.logits_V.double() @ readout_V)
    results = []
    for held in holds:
        pairs = []
        for number, some in _together(asked):
            x_BSD = frozen.streams[number].repeat(len(some), 1, 1)
            for row, each in enumerate(some):
                x_BSD[row, each.position] += each.delta_D
            logits_BV = logits_holding(frozen, number, x_BSD, held).double()
            measured = (logits_BV @ readout_V - base).tolist()
            pairs += [replace(each.pair, measured=m) for each, m in zip(some, measured, strict=True)]
        order = {node: place for place, (_, _, node, _) in enumerate(features)}
        results.append(sorted(pairs, key=lambda pair: (order[pair.node], pair.change)))
    return results


def _asked(
    frozen: FrozenModel, target: Targets, features: Sequence[Acted], changes: Sequence[tuple[Change, float]]
) -> list[_Asked]:
    """The changes, with what the graph predicts of each."""
    held, following = _gradients(frozen, target), _gradients(frozen.following(), target)
    asked = []
    for number, place, node, name in features:
        block = frozen.blocks[number]
        assert block.active is not None
        position = int(block.active.position_A[place])
        effects = [float((block.active.writes_AD[place] * each[number][position]).sum()) for each in (held, following)]
        for change, amount in changes:
            pair = ActedPair(node, name, change, amount * effects[0], 0.0, amount * effects[1])
            asked.append(_Asked(pair, number, position, _written(block, place, amount)))
    return asked


def _gradients(frozen: FrozenModel, target: Targets) -> dict[int, Tensor]:
    """Block -> gradient of the target, along all paths, to what the block's layer of features writes, (P, D)."""
    gradients: dict[int, Tensor] = {}

    def reached(block: HeldBlock, above_RPD: Tensor, _: Tensor) -> None:
        gradients[block.number] = above_RPD[0].clone()

    backward(frozen, target, reached, through=True)
    return gradients


def _together(asked: Sequence[_Asked]) -> Iterator[tuple[int, list[_Asked]]]:
    """The changes after each block, as many at once as one pass takes."""
    for number in dict.fromkeys(each.block for each in asked):
        same = [each for each in asked if each.block == number]
        for start in range(0, len(same), ROWS_AT_ONCE):
            yield number, same[start : start + ROWS_AT_ONCE]


def compared(pairs: list[ActedPair]) -> TraceCheck:
    """Correlations and agreement in sign of changes."""
    predicted = np.array([pair.predicted for pair in pairs])
    measured = np.array([pair.measured for pair in pairs])
    agreement = float((np.sign(predicted) == np.sign(measured)).mean()) if pairs else None
    following = np.array([np.nan if pair.following is None else pair.following for pair in pairs])
    return TraceCheck(correlated(predicted, measured), agreement, pairs, correlated(following, measured))


def correlated(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float | None:
    """Pearson correlation; None where either does not vary."""
    if len(one) < 2 or not (one.std() > 0 and other.std() > 0):
        return None
    return float(np.corrcoef(one, other)[0, 1])


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
