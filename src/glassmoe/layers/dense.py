"""Dense feed-forward layers: GELU, ReLU, gated layers (GEGLU, SwiGLU, ReGLU) and SoLU. They are the dense rows of MoE-X
Table 1 and the layers of imported models.

Legend: T tokens, D model width, F hidden units (the features).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features import Features, FeedForward, bias_parameter, empty_parameters, linear_write
from .one_token import linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu-tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
"""`gelu` is exact; `gelu-tanh` is the approximation that GPT-2 was trained with. They differ by up to 5e-4."""


class Dense(FeedForward):
    """y = W_dec^T s(W_enc x + b_enc) + b_dec, with s one of `ACTIVATIONS`.

    `width`: D. `hidden`: F. Row f of `w_enc` is what feature f reads, row f of `w_dec` what it writes.
    """

    def __init__(self, width: int, hidden: int, activation: str = "gelu", bias: bool = False):
        super().__init__()
        self.num_features, self.input_width = hidden, width
        self.activation = activation
        self.w_enc, self.w_dec = empty_parameters((hidden, width), (hidden, width))
        self.b_enc, self.b_dec = bias_parameter((hidden,), bias), bias_parameter((width,), bias)

    def features(self, x_TD: Tensor) -> Features:
        values_TF = ACTIVATIONS[self.activation](linear(x_TD, self.w_enc, self.b_enc))
        return Features(values_TF, self.num_features)

    def write(self, features: Features) -> Tensor:
        return linear_write(features, self.w_dec, self.b_dec)


class ReluTopK(Dense):
    """A ReLU layer that keeps the k strongest units of a token and sets the rest to 0 (Makhzani and Frey 2014). Its k
    sets the sparsity in the figure of coverage against L0 (MoE-X Figure 4, which names k-sparse layers)."""

    def __init__(self, width: int, hidden: int, k: int, bias: bool = False):
        super().__init__(width, hidden, "relu", bias)
        if not 1 <= k <= hidden:
            raise ValueError(f"k is {k}; a relu-topk layer of {hidden} units keeps 1 to {hidden} of them")
        self.k = k

    def features(self, x_TD: Tensor) -> Features:
        z_TF = F.relu(linear(x_TD, self.w_enc, self.b_enc))
        top = z_TF.topk(self.k, dim=-1)
        return Features(torch.zeros_like(z_TF).scatter(-1, top.indices, top.values), self.num_features)


def gated_hidden(share: int) -> int:
    """Hidden units of a gated layer with as many weights as a plain layer of `share` units: two thirds of them, because
    a gated layer has three matrices instead of two. Where that is not a whole number, the nearest multiple of 8, which
    kernels prefer."""
    return share * 2 // 3 if share % 3 == 0 else round(share * 2 / 3 / 8) * 8


class GLU(FeedForward):
    """y = W_dec^T (s(W_enc x) * (W_up x)) + b_dec (Shazeer 2020); a feature is one product.

    GEGLU, SwiGLU and ReGLU are this layer with `activation` gelu, silu and relu. A product may be below zero. A unit of
    ReGLU is therefore active where it is not zero, which is where W_enc x is above zero.
    """

    def __init__(self, width: int, hidden: int, activation: str = "gelu", bias: bool = False):
        super().__init__()
        self.num_features, self.input_width = hidden, width
        self.activation = activation
        self.w_enc, self.w_up, self.w_dec = empty_parameters(*[(hidden, width)] * 3)
        self.b_dec = bias_parameter((width,), bias)

    @property
    def signed(self) -> bool:
        return self.activation == "relu"

    def features(self, x_TD: Tensor) -> Features:
        values_TF = ACTIVATIONS[self.activation](linear(x_TD, self.w_enc)) * linear(x_TD, self.w_up)
        return Features(values_TF, self.num_features)

    def write(self, features: Features) -> Tensor:
        return linear_write(features, self.w_dec, self.b_dec)


class SoLU(FeedForward):
    """y = W_dec^T LayerNorm(z * softmax(z)) + b_dec with z = W_enc x + b_enc (Elhage et al. 2022).

    The features are z * softmax(z), before the LayerNorm, because only these are sparse. The LayerNorm belongs to
    `write`, which is therefore nonlinear: it runs again on edited features.
    """

    writes: ClassVar[Literal["linear", "token", "nonlinear"]] = "nonlinear"

    def __init__(self, width: int, hidden: int, bias: bool = False):
        super().__init__()
        self.num_features, self.input_width = hidden, width
        self.w_enc, self.w_dec = empty_parameters((hidden, width), (hidden, width))
        self.b_enc, self.b_dec = bias_parameter((hidden,), bias), bias_parameter((width,), bias)
        self.norm = nn.LayerNorm(hidden, bias=bias)

    def features(self, x_TD: Tensor) -> Features:
        z_TF = linear(x_TD, self.w_enc, self.b_enc)
        return Features(z_TF * torch.softmax(z_TF, dim=-1), self.num_features)

    def write(self, features: Features) -> Tensor:
        normed_TF = self.norm(features.to_dense())
        return linear_write(Features(normed_TF, self.num_features), self.w_dec, self.b_dec)
