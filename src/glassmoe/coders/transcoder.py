"""Transcoders: an MLP's output rebuilt from few features of its input, y ~ W_dec^T TopK(relu(W_enc x + b_enc)) + b_dec.

(Dunefsky et al. 2024, "Transcoders find interpretable LLM feature circuits"; with a skip, Paulo et al. 2025,
"Transcoders beat sparse autoencoders for interpretability".) The loss is that of the Mixture of Decoders paper
(Oldfield et al. 2025, arXiv 2505.21364), so that its three rivals are trained alike: the mean over tokens and entries
of (y^ - y)^2 / ||y||, the norm of the token's target, not its square. The decoder starts at 0 and b_dec at the mean of
the targets, so that the coder starts as a constant; rows of the decoder are free. (That paper's code does so for the
skip, and starts the decoder of a plain transcoder as torch's linear map from F inputs: `reference`.)

Legend: T tokens, D width, F features, K features of a token.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from glassmoe.layers.features import Features, empty_parameters

from .base import Coder, ListedCoder
from .configuration import CoderConfig

LEAST_NORM = 1e-3
"""The norm of a target counts as at least this part of the targets' scale: otherwise a target near 0 would outweigh all
others."""


class MlpReplacement(Coder):
    """What replacements of an MLP have in common: start, loss, and decoder rows of free length."""

    unit_rows = False
    stands_for_mlp = True
    reference_draws_decoder: ClassVar[bool] = True

    def _draw(self) -> None:
        self.w_enc.uniform_(-1, 1).mul_(linear_bound(self.w_enc.shape[1]))
        if self.config.reference and self.reference_draws_decoder:
            self.w_dec.uniform_(-1, 1).mul_(linear_bound(self.num_features))

    def _centred(self, x_TD: Tensor) -> Tensor:
        # What is read has another mean than what is written.
        return x_TD

    def _size(self, error_TD: Tensor, y_TD: Tensor) -> Tensor:
        """The mean over tokens and entries of error^2 / ||y||."""
        norm_T: Tensor = y_TD.norm(dim=1).clamp_min(LEAST_NORM * self.scale)
        return (error_TD.square().mean(1) / norm_T).mean()


class Transcoder(MlpReplacement, ListedCoder):
    """The k greatest features of an MLP's input write its output."""


class SkipTranscoder(Transcoder):
    """A transcoder plus a linear map of its input, y^ = ... + W_skip x. Row i of `w_skip` (D, D) writes entry i; it has
    no bias and starts at 0. W_skip x, (T, D), is the features' context: editing a feature leaves it as it is."""

    writes = "token"
    reference_draws_decoder = False

    def __init__(self, width: int, config: CoderConfig, steps: int, tokens: int):
        super().__init__(width, config, steps, tokens)
        (self.w_skip,) = empty_parameters((width, width))

    def _encode(self, x_TD: Tensor) -> tuple[Features, Tensor]:
        features, scores_TF = super()._encode(x_TD)
        return replace(features, context=self._linear(x_TD, self.w_skip).to(x_TD.dtype)), scores_TF

    def _decode(self, features: Features) -> Tensor:
        skip_TD: Tensor = features.context
        return super()._decode(features) + skip_TD


def linear_bound(inputs: int) -> float:
    """Greatest initial weight of torch's `nn.Linear` with this many inputs."""
    return 1 / math.sqrt(inputs)
