"""A mixture of decoders (MxD; Oldfield et al. 2025, "Towards interpretability without sacrifice", arXiv 2505.21364): an
MLP's output rebuilt by a sparse mixture of very many experts, each a linear map of full rank.

    z = s(E^T x + e), or with `glu` s(E1^T x + e1) * (E2^T x + e2)             hidden units
    a = TopK(relu(G x + g), k)                                                 strengths of the experts, the features
    y^ = (C^T a) * (D^T z) + b

Expert n is the map W_n = D diag(c_n) from the hidden units: the sum over experts of a_n W_n^T z is (C^T a) * (D^T z),
so N H D weights are held in (N + H) D, and every W_n has the rank of D where c_n has no zero. Loss and start are those
of `transcoder.py`: D at 0, b at the mean of the targets, E, G and C as torch's linear maps (C that of a map from N
inputs), all other biases 0. With `unit_norm` the rows of C start uniform in a cube and are held at norm 1.

So the gate C^T a starts around 0, with a random sign for every expert and entry. With `gate: one`, our variant, rows
of C start uniform from 0 to twice the value at which the gate of the first batch is 1 on average. All experts then
start as one MLP, which learns as such while they diverge.

Legend: T tokens, D width, F features (the experts), K experts of a token, H hidden units.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from glassmoe.layers import dense
from glassmoe.layers.features import Features, empty_parameters

from .configuration import CoderConfig
from .transcoder import Transcoder, linear_bound

ACTIVATIONS = {**dense.ACTIVATIONS, "sigmoid": F.sigmoid}


class MxD(Transcoder):
    """A mixture of decoders. Row f of `w_enc` (F, D) is what expert f reads (a row of G), row f of `w_dec` (F, D)
    its scaling of the output (a row of C); `b_enc` (F,) is g, `b_dec` (D,) is b. Row h of `w_hidden` (H, D) is what
    hidden unit h reads (E), row h of `w_out` (H, D) what it writes (D), `b_hidden` (H,) is e; with `glu`, `w_linear`
    (H, D) and `b_linear` (H,) are the branch without the activation.

    The features' context is u = D^T z, (T, D): an expert writes its row of C times u, and editing its strength leaves
    u as it is. The auxiliary loss, where wanted, holds u constant, so that it moves experts alone.
    """

    writes = "token"
    reference_draws_decoder = False

    def __init__(self, width: int, config: CoderConfig, steps: int, tokens: int):
        super().__init__(width, config, steps, tokens)
        assert self.config.hidden is not None
        shape = (self.config.hidden, width)
        self.unit_rows = self.config.unit_norm
        self.activation = ACTIVATIONS[self.config.activation]
        self.w_hidden, self.b_hidden, self.w_out = empty_parameters(shape, shape[:1], shape)
        if self.config.glu:
            self.w_linear, self.b_linear = empty_parameters(shape, shape[:1])

    def _draw(self) -> None:
        super()._draw()
        self.w_dec.uniform_(-1, 1)
        if self.config.gate == "one":
            self.w_dec.add_(1)
        elif self.unit_rows:
            self.w_dec.copy_(F.normalize(self.w_dec, dim=1))
        else:
            self.w_dec.mul_(linear_bound(self.num_features))
        for w_HD in (self.w_hidden, *((self.w_linear,) if self.config.glu else ())):
            w_HD.uniform_(-1, 1).mul_(linear_bound(w_HD.shape[1]))

    @torch.no_grad()
    def initialise(self, x_TD: Tensor, y_TD: Tensor | None = None) -> None:
        super().initialise(x_TD, y_TD)
        if self.config.gate == "one":
            strength = self.features(x_TD).values.sum(1).mean()
            self.w_dec.div_(torch.where(strength > 0, strength, 1.0))

    def hidden(self, x_TD: Tensor) -> Tensor:
        """(T, H): the hidden units z."""
        z_TH = self.activation(self._linear(x_TD, self.w_hidden, self.b_hidden))
        return z_TH * self._linear(x_TD, self.w_linear, self.b_linear) if self.config.glu else z_TH

    def _encode(self, x_TD: Tensor) -> tuple[Features, Tensor]:
        features, scores_TF = super()._encode(x_TD)
        u_TD = self._linear(self.hidden(x_TD), self.w_out.t()).to(x_TD.dtype)
        return replace(features, context=u_TD), scores_TF

    def _directions(self, features: Features) -> Tensor:
        u_TD: Tensor = features.context
        return super()._directions(features) * u_TD

    def _help(self, dead: Features) -> Tensor:
        return self._directions(replace(dead, context=dead.context.detach()))
