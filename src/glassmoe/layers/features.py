"""The two-step view of a feed-forward layer: which features fire, and what they write.

MoE-X (arXiv 2503.07639) observes that a mixture of experts is one very wide, very sparse MLP. Every layer here follows
from that: `features(x)` says which features fire and how strongly, `write(features)` says what they add to the residual
stream, and `forward(x)` is the fast path that must give the same result.

Legend: T tokens, D model width, A features listed per token, F features of the layer in all, S chosen features; names
without a suffix have any leading shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .one_token import combined

FeatureIds = int | Sequence[int] | Tensor


@dataclass(frozen=True)
class Features:
    """The features of a layer on tokens of any leading shape. Values are never thresholded here: each measure decides
    what counts as active.

    `values`: (..., F) when `ids` is None, else (..., A). `ids`: (..., A) int64 feature numbers in [0, width), or None
    for dense. `width`: F, the number of features of the layer. `context`: whatever `write` needs besides the values
    (for example frozen routing), with all tokens in one row; edits do not change it. A token may list a feature more
    than once: its strength is the sum. ValueError when the shapes contradict each other.
    """

    values: Tensor
    width: int
    ids: Tensor | None = None
    context: Any = None

    def __post_init__(self) -> None:
        if self.ids is None and self.values.shape[-1] != self.width:
            raise ValueError(f"dense features need {self.width} values a token, got {self.values.shape[-1]}")
        if self.ids is not None and self.ids.shape != self.values.shape:
            raise ValueError(f"ids {tuple(self.ids.shape)} and values {tuple(self.values.shape)} differ in shape")

    def to_dense(self) -> Tensor:
        """(..., F): the strength of every feature, zero where it is not listed."""
        if self.ids is None:
            return self.values
        dense = self.values.new_zeros(*self.values.shape[:-1], self.width)
        return dense.scatter_add(-1, self.ids, self.values)

    def coalesce(self) -> Features:
        """The same features with ascending ids and one strength for each feature of a token. A repeated id keeps its
        place, with value 0."""
        if self.ids is None:
            return self
        ids, order = self.ids.sort(dim=-1, stable=True)
        values = self.values.gather(-1, order)
        first = torch.ones_like(ids, dtype=torch.bool)
        first[..., 1:] = ids[..., 1:] != ids[..., :-1]
        slot = first.cumsum(-1) - 1
        summed = torch.zeros_like(values).scatter_add(-1, slot, values)
        return replace(self, ids=ids, values=torch.where(first, summed.gather(-1, slot), 0.0))

    def select(self, features: FeatureIds) -> Tensor:
        """(..., S): the strengths of the S named features, in that order."""
        chosen_S = self._chosen(features)
        if self.ids is None:
            return self.values[..., chosen_S]
        strengths = [(self.values * (self.ids == f)).sum(-1) for f in chosen_S.tolist()]
        return torch.stack(strengths, dim=-1) if strengths else self.values[..., :0]

    def scale(self, features: FeatureIds, factor: float) -> Features:
        """Multiply the strength of the named features by `factor`, at every token."""
        hit = self._hits(features)
        return replace(self, values=torch.where(hit, self.values * factor, self.values))

    def ablate(self, features: FeatureIds) -> Features:
        """Set the strength of the named features to zero, at every token."""
        return replace(self, values=self.values.masked_fill(self._hits(features), 0.0))

    def add(self, features: FeatureIds, amount: float) -> Features:
        """Add `amount` to the strength of the named features, also where they are silent or not listed."""
        if self.ids is None:
            return replace(self, values=self.values + amount * self._hits(features).to(self.values.dtype))
        chosen_S = self._chosen(features).expand(*self.values.shape[:-1], -1)
        return replace(
            self,
            values=torch.cat([self.values, self.values.new_full(chosen_S.shape, amount)], dim=-1),
            ids=torch.cat([self.ids, chosen_S], dim=-1),
        )

    def set(self, features: FeatureIds, value: float) -> Features:
        """Set the strength of the named features to `value` at every token, also where they are silent or not
        listed."""
        return self.ablate(features).add(features, value)

    def _chosen(self, features: FeatureIds) -> Tensor:
        chosen_S = torch.as_tensor(features, device=self.values.device, dtype=torch.long).reshape(-1)
        if len(chosen_S.unique()) != len(chosen_S):
            raise ValueError(f"a feature is named twice in {features}")
        if len(chosen_S) and (int(chosen_S.min()) < 0 or int(chosen_S.max()) >= self.width):
            raise ValueError(f"feature {features} is not in this layer: it has features 0 to {self.width - 1}")
        return chosen_S

    def _hits(self, features: FeatureIds) -> Tensor:
        """Bool, broadcastable to `values`: which entries belong to the named features."""
        chosen_S = self._chosen(features)
        if self.ids is not None:
            return torch.isin(self.ids, chosen_S)
        hit_F = torch.zeros(self.width, dtype=torch.bool, device=self.values.device)
        hit_F[chosen_S] = True
        return hit_F


Method = TypeVar("Method", bound=Callable[..., Any])


def any_shape(method: Method) -> Method:
    """Let a method that takes tokens in one row, (T, D) or `Features` of T tokens, take any leading shape.

    All arguments have the same leading shape, and so have the results: tensors, `Features` and tuples of them. A
    dictionary of losses is not changed. ValueError for a last dimension that is not the layer's.
    """

    @wraps(method)
    def flattened(layer: FeedForward, *args: Any, **kwargs: Any) -> Any:
        arguments = [*args, *kwargs.values()]
        shape = _leading_shape(layer, arguments[0])
        for other in arguments[1:]:
            if isinstance(other, Tensor) and _leading_shape(layer, other) != shape:
                raise ValueError(
                    f"{type(layer).__name__} takes tensors of one shape, got {tuple(arguments[0].shape)} and "
                    f"{tuple(other.shape)}"
                )
        if len(shape) == 1:
            return method(layer, *args, **kwargs)
        rows = method(layer, *map(_in_one_row, args), **{name: _in_one_row(each) for name, each in kwargs.items()})
        return _restored(rows, shape)

    return flattened  # type: ignore[return-value]


def _leading_shape(layer: FeedForward, x: Tensor | Features) -> torch.Size:
    if isinstance(x, Features):
        if x.width != layer.num_features:
            raise ValueError(
                f"{type(layer).__name__} has {layer.num_features} features, got features of a layer of {x.width}; "
                f"write features with the layer that they come from"
            )
        return x.values.shape[:-1]
    width = layer.input_width
    if x.ndim == 0 or (width is not None and x.shape[-1] != width):
        raise ValueError(
            f"{type(layer).__name__} reads tensors of shape (..., {'D' if width is None else width}), got "
            f"{tuple(x.shape)}"
        )
    return x.shape[:-1]


def _in_one_row(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.flatten(0, -2) if x.ndim > 1 else x.unsqueeze(0)
    if isinstance(x, Features):
        ids = None if x.ids is None else _in_one_row(x.ids)
        return replace(x, values=_in_one_row(x.values), ids=ids)
    return x


def _restored(result: Any, shape: torch.Size) -> Any:
    if isinstance(result, Tensor):
        return result.reshape(*shape, *result.shape[1:])
    if isinstance(result, Features):
        ids = None if result.ids is None else _restored(result.ids, shape)
        return replace(result, values=_restored(result.values, shape), ids=ids)
    if isinstance(result, tuple):
        parts = [_restored(part, shape) for part in result]
        return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)
    return result


class FeedForward(nn.Module):
    """A feed-forward layer that can be read: implement `features` and `write`, and every measure works on it.

    Both are written for tokens in one row, (T, D). The base class lets them and `forward` take any leading shape,
    (..., D), in every subclass; `row_methods` names the methods.

    `num_features`: F. `input_width`: D; inputs of another width are refused (where a layer sets none, the decoder sets
    the model's width). `num_experts`: the number of equal groups of features (1 for a layer that does not route);
    feature f belongs to expert f // (F / num_experts). `writes`: "linear" (a fixed vector per feature), "token" (the
    vector depends on the features' context) or "nonlinear". `output_weights`: names of the layer's own parameters that
    write into the residual stream; their initial standard deviation is the smaller one of residual projections.
    `signed`: whether a feature below zero is active too; silent features are then exactly 0.
    """

    num_features: int
    input_width: int | None = None
    num_experts: int = 1
    writes: ClassVar[Literal["linear", "token", "nonlinear"]] = "linear"
    output_weights: ClassVar[tuple[str, ...]] = ("w_dec",)
    row_methods: ClassVar[tuple[str, ...]] = ("features", "write", "forward")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in cls.row_methods:
            if name in vars(cls):
                setattr(cls, name, any_shape(vars(cls)[name]))

    def features(self, x_TD: Tensor) -> Features:
        """Which features fire on each token, and how strongly. `x_TD`: (T, D), the normalised residual stream."""
        raise NotImplementedError

    def write(self, features: Features) -> Tensor:
        """(T, D): what these features add to the residual stream."""
        raise NotImplementedError

    def forward(self, x_TD: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The layer's output (T, D) and its named training losses (scalars, already weighted; empty outside training).

        Layers with a faster path override this method; the output must equal `write(features(x_TD))`.
        """
        return self.write(self.features(x_TD)), {}

    @property
    def signed(self) -> bool:
        return False

    def active(self, features: Features) -> Tensor:
        """Bool, of the shape of the values: which features count in L0. These are the features above 0. Gated ReLU
        units have products of either sign; they are active where they are not 0, which is where their gate is open."""
        return features.values != 0 if self.signed else features.values > 0

    def forget(self) -> None:
        """Drops what was computed from the weights and kept. Weights that are gathered from several processes change
        without notice."""

    def active_parameters(self) -> int:
        """The number of weights that are multiplied for one token."""
        return sum(p.numel() for p in self.parameters())


def linear_write(features: Features, w_dec_FD: Tensor, b_dec_D: Tensor | None) -> Tensor:
    """Sum over features of strength times the feature's own vector, plus the bias: (T, D)."""
    if features.ids is None:
        y_TD = combined(features.values, w_dec_FD.to(features.values.dtype))
    else:
        w_dec_FD = w_dec_FD.to(features.values.dtype)
        y_TD = F.embedding_bag(features.ids, w_dec_FD, per_sample_weights=features.values, mode="sum")
    return y_TD if b_dec_D is None else y_TD + b_dec_D.to(y_TD.dtype)


def empty_parameters(*shapes: Iterable[int]) -> list[nn.Parameter]:
    """Parameters that the model's initialisation fills."""
    return [nn.Parameter(torch.empty(tuple(shape))) for shape in shapes]


def bias_parameter(shape: Iterable[int], wanted: bool) -> nn.Parameter | None:
    """A bias of this shape, or none."""
    return empty_parameters(shape)[0] if wanted else None
