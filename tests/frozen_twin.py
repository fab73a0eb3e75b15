"""A frozen model once more, slowly: the forward pass with the patterns of the first one."""

from dataclasses import replace

import torch
from torch import Tensor

from glassmoe.layers.dense import SoLU
from glassmoe.layers.features import Features
from glassmoe.model import GlassForCausalLM
from glassmoe.tracing.frozen import FrozenModel

STEP = 1e-3


def held_norm(module: torch.nn.Module, x: Tensor, original: Tensor) -> Tensor:
    """A norm whose scale is that of the original input."""
    bias = getattr(module, "bias", None)
    if isinstance(module, torch.nn.RMSNorm):
        out = x / (original.square().mean(-1, keepdim=True) + module.eps).sqrt() * module.weight
    else:
        sd = (original.var(-1, correction=0, keepdim=True) + module.eps).sqrt()
        out = (x - x.mean(-1, keepdim=True)) / sd * module.weight
    return out if bias is None else out + bias


class Twin:
    """The forward pass once more, slowly, with every pattern of the first pass: strengths are given, inputs come
    out."""

    def __init__(self, model: GlassForCausalLM, held: FrozenModel):
        self.model, self.held = model, held
        self.originals: list[list[Tensor]] | None = None
        embedded, strengths = self.leaves()
        self.originals = self.run(embedded, strengths)[2]

    def leaves(self) -> tuple[Tensor, list[Tensor]]:
        dense = [block.layer.features(block.read_SD).to_dense().clone() for block in self.held.blocks]
        return self.held.embedded_SD.clone(), dense

    def write(self, block: object, dense: Tensor) -> Tensor:
        layer, features = block.layer, block.layer.features(block.read_SD)
        if isinstance(layer, SoLU):
            return held_norm(layer.norm, dense, features.values) @ layer.w_dec + (
                0 if layer.b_dec is None else layer.b_dec
            )
        return layer.write(replace(Features(dense, layer.num_features), context=features.context))

    def run(self, x: Tensor, strengths: list[Tensor]) -> tuple[list[Tensor], Tensor, list[list[Tensor]]]:
        """Inputs of the active features by block, the logits at the last position, and what the norms read."""
        inputs, seen = [], []
        for block, module, dense in zip(self.held.blocks, self.model.model.layers, strengths, strict=True):
            of = [x, x, x] if self.originals is None else self.originals[block.number]
            attention, pattern = module.attention, block.attention.pattern_HSS
            size = [n * (x.shape[1] // 4) for n in attention.parts]
            value = attention.qkv(held_norm(module.attention_norm, x, of[0])).split(size, dim=1)[2]
            value = value.view(len(x), attention.parts[2], -1).repeat_interleave(4 // attention.parts[2], dim=1)
            mixed = torch.einsum("hpq,qhc->phc", pattern, value)
            attended = x + attention.out(mixed.flatten(1))
            entering = x if module.parallel else attended
            read = held_norm(module.ffn_norm, entering, entering if self.originals is None else of[1])
            active = block.active
            rows = active.weights_FD[active.feature_A]
            inputs.append(active.factor_A * (rows * read[active.position_A]).sum(1) + active.offset_A)
            seen.append([x, entering])
            x = attended + self.write(block, dense)
        original = x if self.originals is None else self.originals[-1][0]
        seen.append([x])
        return inputs, self.model.lm_head(held_norm(self.model.model.norm, x, original))[-1], seen

    def rows(self) -> tuple[Tensor, Tensor]:
        """Edges from tokens and features to all active features (sources, targets), and to all logits."""
        to_inputs, to_logits = [], []
        embedded, strengths = self.leaves()

        def change(leaf: Tensor, place: object) -> None:
            kept, results = leaf[place].clone(), []
            for factor in (1 + STEP, 1 - STEP):
                leaf[place] = kept * factor
                inputs, logits, _ = self.run(embedded, strengths)
                results.append((torch.cat(inputs), logits))
            leaf[place] = kept
            to_inputs.append((results[0][0] - results[1][0]) / (2 * STEP))
            to_logits.append((results[0][1] - results[1][1]) / (2 * STEP))

        for p in range(len(embedded)):
            change(embedded, p)
        for block, dense in zip(self.held.blocks, strengths, strict=True):
            for place in zip(block.active.position_A.tolist(), block.active.feature_A.tolist(), strict=True):
                change(dense, place)
        return torch.stack(to_inputs), torch.stack(to_logits)
