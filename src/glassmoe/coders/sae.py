"""Sparse autoencoders: x is rebuilt from few features, x ~ W_dec^T f + b_dec. x is the residual stream after a
block, or an MLP's output.

Six ways to keep f sparse, with the objectives that the chess protocol trains (Karvonen et al. 2024, "Measuring
progress in dictionary learning for language model interpretability with board game models") and two later ones. All
terms are means over tokens, and ||.||^2 is a sum over the entries of x:

- `l1` (Bricken et al. 2023): f = relu(W_enc (x - b_dec) + b_enc); ||x - x^||^2 + l1 s w(step) sum_f f, where w rises
  from 0 to 1 in the warm-up and s is the size of the stream (`scale`): the protocol's own weight is l1 s.
- `p-anneal`: sum_f f^p in place of sum_f f, p going from 1 to `p_end` in equal steps. At each the weight is multiplied
  by mean(sum f^p at the old p) / mean(at the new p) over the last batches, so that the penalty keeps its size.
- `gated` (Rajamanoharan et al. 2024): z = W_enc (x - b_dec), g = relu(z + b_gate),
  f = 1[g > 0] relu(exp(r_mag) z + b_enc); ||x - x^||^2 + l1 s w(step) sum_f g + ||x - (W_dec^T g + b_dec)||^2, where
  the last term's decoder is held constant.
- `topk` (Gao et al. 2024): the k greatest of relu(W_enc (x - b_dec) + b_enc); ||x - x^||^2 + 1/32 ||e - W_dec^T h||^2,
  e the error x - x^ held constant, h the D / 2 greatest of the dead features.
- `batchtopk` (Bussmann et al. 2024): of n tokens in training the n k greatest together, so that a token takes what it
  needs; otherwise those that reach `threshold`, the running mean of the least that was kept. Losses as for `topk`.
- `jumprelu` (Rajamanoharan et al. 2024, "Jumping ahead"): z = W_enc (x - b_dec) + b_enc, f = z 1[z > theta],
  theta = exp(log_theta); ||x - x^||^2 + l0 s^2 w(step) sum_f 1[z > theta]. The steps at theta pass gradients to it as
  if z were spread evenly over a width of `bandwidth` s; s makes both numbers those for an input of mean square 1.

In each, rows of the decoder have norm 1, or longer rows would make a penalty on f smaller for nothing: the part of the
gradient along a row is taken out before an update, and rows are normalised after it. The input is not normalised
unless `normalise` says so.

Legend: T tokens, D width, F features, K features of a token, N batches that are remembered.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from glassmoe.layers.features import Features, empty_parameters, linear_write

from .base import Coder, CodingPass, ListedCoder
from .configuration import CoderConfig

REMEMBERED = 10
"""Number of batches over which the size of the penalty is averaged when p changes."""
THRESHOLD_MEMORY = 100
"""Approximate number of steps over which the threshold of `batchtopk` is averaged: the mean of all steps while there
are fewer, then each new step has a weight of a hundredth."""
SAMPLED = 61
"""`batchtopk` samples one of this many scores to bound the greatest; a prime, so that every feature is sampled."""
FIRST_THETA = 0.001
"""Thresholds of `jumprelu` before the fit, for an input of mean square 1 (Rajamanoharan et al. 2024)."""


class L1(Coder):
    """A penalty on the sum of the features."""

    def _encode(self, x_TD: Tensor) -> tuple[Features, Tensor]:
        values_TF = F.relu(self.scores(x_TD))
        return Features(values_TF, self.num_features), values_TF

    def _losses(self, coded: CodingPass) -> dict[str, Tensor]:
        return {"sparsity": self._warmup() * self._penalty(coded.features.values)}

    def _penalty(self, values_TF: Tensor) -> Tensor:
        return self.config.l1 * self.scale * values_TF.sum(1).mean()


class PAnneal(L1):
    """A penalty on the sum of the features to the power p. Of `anneal_updates` changes of p the first comes at
    `anneal_start`, and each value that p takes from then on has the same number of steps.

    With `reference`, `anneal_updates` is the number of values from 1 to `p_end`, as in dictionary_learning: p is still
    1 after the first update, and the last one, to `p_end`, would come after the last step. An update there takes
    effect in the step after it, and the penalties before a change stay remembered.

    Buffers: `updates`, changes made so far; `weight`, the penalty's weight in place of l1; `penalties_N2`, mean penalty
    at the present p and at the next, of the last N steps since p changed (0 where there were fewer); `sums_2`, the sums
    of both over the tokens seen since the last step.
    """

    counters: ClassVar[tuple[str, ...]] = (*L1.counters, "sums_2")
    updates: Tensor
    weight: Tensor
    penalties_N2: Tensor
    sums_2: Tensor

    def __init__(self, width: int, config: CoderConfig, steps: int, tokens: int):
        super().__init__(width, config, steps, tokens)
        # A change needs a step before it, which measures the penalty.
        first = max(1, round(config.anneal_start * steps))
        changes, rest = config.anneal_updates, steps - first
        if rest < changes:
            raise ValueError(
                f"coder.anneal_updates is {changes}, and {max(0, rest)} of {steps} steps come after the first change "
                f"of p; raise train.steps, or lower coder.anneal_updates or coder.anneal_start"
            )
        self.change_steps = {first + i * rest // changes for i in range(changes)}
        self.forget_steps, self.changes = self.change_steps, changes
        if config.reference:
            updates = torch.linspace(round(config.anneal_start * steps), steps, changes, dtype=torch.long)
            first, *later = (updates[: max(1, changes - 1)] + 1).tolist()
            self.forget_steps, self.change_steps, self.changes = {first}, set(later), max(1, changes - 1)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.register_buffer("weight", torch.tensor(config.l1))
        self.register_buffer("penalties_N2", torch.zeros(REMEMBERED, 2))
        self.register_buffer("sums_2", torch.zeros(2))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.weight.fill_(self.config.l1)

    def exponent(self, ahead: int = 0) -> Tensor:
        """p after `ahead` more changes; never below `p_end`."""
        share = (self.updates + ahead).clamp(max=self.changes) / self.changes
        return 1 - (1 - self.config.p_end) * share

    def _penalty(self, values_TF: Tensor) -> Tensor:
        # The power's slope is infinite at 0; relu passes no gradient back from there, whatever it is.
        penalty = values_TF.pow(self.exponent()).sum(1).mean()
        if self._counting:
            with torch.no_grad():
                ahead = values_TF.pow(self.exponent(1)).sum(1).mean()
                self.sums_2.add_(torch.stack([penalty, ahead]) * len(values_TF))
        return self.weight * self.scale * penalty

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        mean_2 = self.sums_2 / self.seen.clamp(min=1)
        self.penalties_N2.copy_(torch.cat([self.penalties_N2[1:], mean_2.unsqueeze(0)]))
        self.sums_2.zero_()
        super().after_update(step)
        if step + 1 in self.change_steps:
            now, ahead = self.penalties_N2.sum(0)
            self.weight.mul_(torch.where(ahead > 0, now / ahead, 1.0))
            self.updates.add_(1)
        if step + 1 in self.forget_steps:
            self.penalties_N2.zero_()


class Gated(Coder):
    """A gate decides who fires, a magnitude how strongly; both read the same rows of `w_enc`. The penalty is on the
    gate alone, so that it does not shrink the magnitudes. `b_gate`, `r_mag`, both (F,); `b_enc` is the magnitude's."""

    def __init__(self, width: int, config: CoderConfig, steps: int, tokens: int):
        super().__init__(width, config, steps, tokens)
        self.b_gate, self.r_mag = empty_parameters((self.num_features,), (self.num_features,))

    def _encode(self, x_TD: Tensor) -> tuple[Features, Tensor]:
        """The features, and relu of the gate's scores (T, F)."""
        scores_TF = self.scores(x_TD)
        gate_TF = F.relu(scores_TF + self.b_gate)
        magnitude_TF = F.relu(self.r_mag.exp() * scores_TF + self.b_enc)
        return Features(magnitude_TF * (gate_TF > 0), self.num_features), gate_TF

    def _losses(self, coded: CodingPass) -> dict[str, Tensor]:
        gate_TF = coded.chosen_by
        by_gate_TD = linear_write(Features(gate_TF, self.num_features), self.w_dec.detach(), self.b_dec.detach())
        return {
            "sparsity": self._warmup() * self.config.l1 * self.scale * gate_TF.sum(1).mean(),
            "gate_error": self._size(coded.y - by_gate_TD, coded.y),
        }

    def scores(self, x_TD: Tensor) -> Tensor:
        return F.linear(self._centred(x_TD), self.w_enc)


class JumpReLU(Coder):
    """Each feature has a threshold of its own, learned through the penalty on how many pass it. `log_theta` (F,)."""

    def __init__(self, width: int, config: CoderConfig, steps: int, tokens: int):
        super().__init__(width, config, steps, tokens)
        (self.log_theta,) = empty_parameters((self.num_features,))

    def _draw(self) -> None:
        super()._draw()
        self.log_theta.fill_(math.log(FIRST_THETA))

    @torch.no_grad()
    def initialise(self, x_TD: Tensor, y_TD: Tensor | None = None) -> None:
        super().initialise(x_TD, y_TD)
        self.log_theta.copy_((FIRST_THETA * self.scale).log().expand_as(self.log_theta))

    def _encode(self, x_TD: Tensor) -> tuple[Features, Tensor]:
        """The features, and the mean number of them a token."""
        width = self.config.bandwidth * self.scale
        values_TF, l0 = _Jump.apply(self.scores(x_TD), self.log_theta.exp(), width)  # type: ignore[no-untyped-call]
        return Features(values_TF, self.num_features), l0

    def _losses(self, coded: CodingPass) -> dict[str, Tensor]:
        return {"sparsity": self._warmup() * self.config.l0 * self.scale.square() * coded.chosen_by}


class _Jump(torch.autograd.Function):
    """z 1[z > theta] (T, F), and the mean over tokens of sum_f 1[z > theta]. Where z is within half a width of theta,
    -theta / width of the first goes to theta and -1 / width of the second (the straight-through gradients of
    Rajamanoharan et al. 2024, eqs. 11 and 12); to z nothing of the second."""

    @staticmethod
    def forward(ctx: Any, z_TF: Tensor, theta_F: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(z_TF, theta_F, width)
        passed_TF = z_TF > theta_F
        return z_TF * passed_TF, (passed_TF.sum() / len(z_TF)).to(z_TF.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_TF: Tensor, g_l0: Tensor) -> tuple[Tensor, Tensor, None]:
        z_TF, theta_F, width = ctx.saved_tensors
        near_TF = (z_TF > theta_F - width / 2) & (z_TF < theta_F + width / 2)
        of_values_F, of_count_F = theta_F * (g_TF * near_TF).sum(0), g_l0 / len(z_TF) * near_TF.sum(0)
        return g_TF * (z_TF > theta_F), -(of_values_F + of_count_F) / width, None


class TopK(ListedCoder):
    """The k greatest a token, listed; a token with fewer than k above 0 lists some at 0."""

    @property
    def encoder_scale(self) -> float:
        """1 (Gao et al. 2024): of the projections only k are summed."""
        return 1.0


class BatchTopK(TopK):
    """In training the n k greatest of a pass of n tokens, otherwise those of at least `threshold`; a token's list is as
    long as the longest of the pass, and ends with places at 0.

    Since tokens compete within a pass, passes and processes of other sizes choose a little differently. Buffers:
    `threshold`, running mean over steps of the least value that was kept; `least`, the sum of it over the tokens seen
    since the last step.
    """

    counters: ClassVar[tuple[str, ...]] = (*TopK.counters, "least")
    threshold: Tensor
    least: Tensor

    def __init__(self, width: int, config: CoderConfig, steps: int, tokens: int):
        super().__init__(width, config, steps, tokens)
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("least", torch.zeros(()))

    def _choose(self, scores_TF: Tensor) -> tuple[Tensor, Tensor]:
        positive_TF = F.relu(scores_TF)
        if not self.training:
            kept_TF = (positive_TF >= self.threshold) & (positive_TF > 0)
            return _lists(positive_TF, kept_TF.flatten().nonzero().flatten())
        return _lists(positive_TF, _greatest(positive_TF.flatten(), self.config.k * len(positive_TF)))

    def _count(self, features: Features) -> None:
        super()._count(features)
        kept = features.values.detach()[features.values > 0]
        if len(kept):
            self.least.add_(kept.min() * len(features.values))

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        mean = self.least / self.seen.clamp(min=1)
        self.threshold.lerp_(mean, max(1 / (step + 1), 1 / THRESHOLD_MEMORY))
        self.least.zero_()
        super().after_update(step)


def _greatest(positive: Tensor, wanted: int) -> Tensor:
    """Places, ascending, of the so many greatest numbers above 0, or of all where there are fewer."""
    # Choosing among those above a bound that a sample gives is five times as fast as among all, and as exact.
    sample = positive[::SAMPLED]
    bound = sample.topk(min(len(sample), 2 * wanted // SAMPLED + SAMPLED)).values.min()
    for kept in (positive >= bound, positive > 0):
        places = (kept & (positive > 0)).nonzero().flatten()
        if len(places) >= wanted:
            return places[positive[places].topk(wanted, sorted=False).indices].sort().values
    return places


def _lists(positive_TF: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and strengths, both (T, K), of the features at these places, ascending, of the flattened `positive_TF`; K is
    the number of the token with most of them, at least 1."""
    tokens, features = positive_TF.shape
    token = places.div(features, rounding_mode="floor")
    count_T = torch.bincount(token, minlength=tokens)
    slot = torch.arange(len(places), device=places.device) - (count_T.cumsum(0) - count_T)[token]
    longest = max(1, int(count_T.max())) if tokens else 1
    ids_TK = places.new_zeros(tokens, longest).index_put_((token, slot), places % features)
    return ids_TK, positive_TF.new_zeros(tokens, longest).index_put_((token, slot), positive_TF.flatten()[places])
