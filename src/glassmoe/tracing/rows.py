"""Rows of an attribution graph: for a target, the part of its input that every source wrote.

A row is one backward pass through the frozen model, from the target's input down to the embeddings, in which the
gradient stops at every layer of features. Targets are taken many at a time.

Sources are numbered: the S token embeddings, the L + 1 biases (that of block l, then that of the last norm), the active
features of all blocks, and the errors of S positions for each block that has them.

Legend: M sources, R rows (targets), S positions, P the first of them that a pass needs, D width, L blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .frozen import FrozenModel, HeldBlock

NUMBERS_AT_ONCE = 1 << 24
"""Numbers of the greatest array of a pass, about: it decides how many rows are taken at once."""


@dataclass(frozen=True)
class Targets:
    """What R rows are made for. `layer_R`: block whose layer of features the target belongs to; L for what is read
    after the last norm. `reads_RD`: gradient of the target's input to what the layer reads. `offset_R`: the target's
    own bias."""

    layer_R: Tensor
    position_R: Tensor
    reads_RD: Tensor
    offset_R: Tensor

    def __len__(self) -> int:
        return len(self.layer_R)

    def select(self, chosen: Tensor) -> Targets:
        return Targets(self.layer_R[chosen], self.position_R[chosen], self.reads_RD[chosen], self.offset_R[chosen])


class Sources:
    """The numbers of all sources of a frozen model."""

    def __init__(self, frozen: FrozenModel):
        self.length, self.blocks = frozen.length, len(frozen.blocks)
        self.tokens, self.biases = 0, self.length
        place = self.length + self.blocks + 1
        self.features: list[int] = []
        """Where the features of each block begin, and where they end."""
        for block in frozen.blocks:
            self.features.append(place)
            place += 0 if block.active is None else len(block.active.value_A)
        self.features.append(place)
        self.errors: list[int | None] = []
        """Where the errors of each block begin."""
        for block in frozen.blocks:
            self.errors.append(None if block.error_SD is None else place)
            place += 0 if block.error_SD is None else self.length
        self.count = place

    @property
    def first_feature(self) -> int:
        return self.features[0]

    @property
    def num_features(self) -> int:
        return self.features[-1] - self.features[0]


class RowMaker:
    """Makes rows of a frozen model."""

    def __init__(self, frozen: FrozenModel):
        self.frozen, self.sources = frozen, Sources(frozen)
        layers = [torch.full((len(b.active.value_A),), b.number) for b in frozen.blocks if b.active is not None]
        self.feature_layers = torch.cat(layers) if layers else torch.zeros(0, dtype=torch.long)
        """Block of each feature."""
        largest = max(self.sources.count, frozen.length * 4 * frozen.embedded_SD.shape[1])
        self.at_once = max(16, min(512, NUMBERS_AT_ONCE // largest))

    @torch.no_grad()
    def of_features(self, numbers: Tensor) -> Targets:
        """The features with these numbers (from 0, in the order of the sources) as targets."""
        layer_R = self.feature_layers[numbers]
        width = self.frozen.embedded_SD.shape[1]
        position_R = torch.zeros_like(layer_R)
        reads_RD, offset_R = (
            self.frozen.embedded_SD.new_zeros(shape) for shape in ((len(numbers), width), len(numbers))
        )
        for layer in layer_R.unique().tolist():
            block = self.frozen.blocks[layer]
            assert block.active is not None
            mine = (layer_R == layer).nonzero().squeeze(1)
            inside = numbers[mine] - (self.sources.features[layer] - self.sources.first_feature)
            inside = inside.to(reads_RD.device)
            position_R[mine] = block.active.position_A[inside].cpu()
            reads_RD[mine] = block.active.reads(inside)
            own = block.active.offset_A[inside] + block.norm.constant(reads_RD[mine])
            offset_R[mine] = own
        return Targets(layer_R, position_R, reads_RD, offset_R)

    @torch.no_grad()
    def of_logits(self, directions_RD: Tensor) -> Targets:
        """Directions that read after the last norm at the last position (R, D) as targets."""
        count = len(directions_RD)
        layer_R = torch.full((count,), len(self.frozen.blocks))
        position_R = torch.full((count,), self.frozen.length - 1)
        return Targets(layer_R, position_R, directions_RD, self.frozen.norm.constant(directions_RD))

    @torch.no_grad()
    def __call__(self, targets: Targets) -> Tensor:
        """(R, M): the rows of these targets, a part of them at a time."""
        order = torch.argsort(targets.layer_R, descending=True, stable=True)
        sorted_RM = self.frozen.embedded_SD.new_zeros(len(targets), self.sources.count)
        start = 0
        for part in order.split(self.at_once):
            self._pass(targets.select(part), sorted_RM[start : start + len(part)])
            start += len(part)
        # Rows are large: those that are in order are not copied.
        in_order: Tensor = sorted_RM if bool((order.diff() > 0).all()) else sorted_RM[order.argsort()]
        return in_order

    def _pass(self, targets: Targets, out_RM: Tensor) -> None:
        """Fill in the rows of targets that are sorted by layer, the last one first."""
        frozen, sources = self.frozen, self.sources
        out_RM[torch.arange(len(targets)), sources.biases + targets.layer_R] = targets.offset_R

        def reached(block: HeldBlock, above_RPD: Tensor, attended_RPD: Tensor) -> None:
            if len(above_RPD):
                self._write(out_RM[: len(above_RPD)], block, above_RPD)
            # The attention's bias is the same at every position.
            bias_R = attended_RPD.sum(1) @ block.attention.bias_D
            out_RM[: len(attended_RPD), sources.biases + block.number] += bias_R

        stream_RPD = backward(frozen, targets, reached)
        out_RM[:, : stream_RPD.shape[1]] = (stream_RPD * frozen.embedded_SD[: stream_RPD.shape[1]]).sum(-1)

    def _write(self, out_RM: Tensor, block: HeldBlock, g_RPD: Tensor) -> None:
        """Fill in the parts of features, errors and the bias of one block, from the gradient of what it writes."""
        length = g_RPD.shape[1]
        out_RM[:, self.sources.biases + block.number] += g_RPD.flatten(1) @ block.bias_SD[:length].flatten()
        if block.active is not None:
            start, bounds = self.sources.features[block.number], block.active.starts
            for p in range(length):
                begin, end = bounds[p], bounds[p + 1]
                if end > begin:
                    out_RM[:, start + begin : start + end] = g_RPD[:, p] @ block.active.writes_AD[begin:end].T
        first_error = self.sources.errors[block.number]
        if first_error is not None and block.error_SD is not None:
            errors_RP = torch.einsum("rpd,pd->rp", g_RPD, block.error_SD[:length])
            out_RM[:, first_error : first_error + length] = errors_RP


def backward(frozen: FrozenModel, targets: Targets, reached: object = None, through: bool = False) -> Tensor:
    """(R, P, D): the gradient of the targets' inputs to the token embeddings at the first P positions, where no target
    stands later than the last of them.

    `targets`: sorted by layer, the last one first. `reached(block, above_RPD, attended_RPD)` is called at each block,
    from the last to the first: with the gradient of what its layer of features writes, for the targets of later blocks,
    and with that of what its attention writes. `through`: whether the gradient also passes through the active features,
    so that it holds all paths and not only the direct ones.
    """
    length = int(targets.position_R.max()) + 1
    rows, width = targets.reads_RD.shape
    g_RPD = targets.reads_RD.new_zeros(rows, length, width)
    device = g_RPD.device
    layers_R = targets.layer_R.tolist()
    position_R = targets.position_R.to(device)

    def read(norm: object, into_RPD: Tensor, first: int, last: int) -> None:
        """Add the gradients of targets number `first` to `last` - 1 at their positions."""
        at = position_R[first:last]
        back = norm.back_at(targets.reads_RD[first:last], at)  # type: ignore[attr-defined]
        into_RPD[torch.arange(first, last, device=device), at] += back

    top = len(frozen.blocks)
    finals = sum(layer == top for layer in layers_R)
    if finals:
        read(frozen.norm, g_RPD, 0, finals)
    above = finals
    for block in reversed(frozen.blocks):
        alive = above + sum(layer == block.number for layer in layers_R)
        above_RPD, alive_RPD = g_RPD[:above], g_RPD[:alive]
        if not alive:
            continue
        # What reads through the norm before the layer of features: its targets, and a skip.
        reading_RPD = torch.zeros_like(alive_RPD)
        if above and block.active is not None:
            if block.active.skip_DD is not None:
                reading_RPD[:above] += block.norm.backward(above_RPD @ block.active.skip_DD)
            if through:
                reading_RPD[:above] += block.norm.backward(_through(block, above_RPD))
        if alive > above:
            read(block.norm, reading_RPD, above, alive)
        attended_RPD = alive_RPD if block.parallel else alive_RPD + reading_RPD
        if reached is not None:
            reached(block, above_RPD, attended_RPD)  # type: ignore[operator]
        back_RPD = block.attention.backward(attended_RPD)
        g_RPD[:alive] = alive_RPD + reading_RPD + back_RPD
        above = alive
    return g_RPD


def _through(block: HeldBlock, g_RPD: Tensor) -> Tensor:
    """Gradient of what a layer of features reads, from that of what it writes: strength follows the input of every
    active feature in proportion, as far as the factors are held."""
    active = block.active
    assert active is not None
    out_RPD = torch.zeros_like(g_RPD)
    # Writes hold the strength; strength per input is 1 for ReLU units.
    scale_A = torch.where(active.input_A != 0, 1 / active.input_A, 0.0)
    for p in range(g_RPD.shape[1]):
        begin, end = active.starts[p], active.starts[p + 1]
        if end > begin:
            chosen = torch.arange(begin, end, device=g_RPD.device)
            effect_RA = (g_RPD[:, p] @ active.writes_AD[begin:end].T) * scale_A[begin:end]
            out_RPD[:, p] = effect_RA @ active.reads(chosen)
    return out_RPD
