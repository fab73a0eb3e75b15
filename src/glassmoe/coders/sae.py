"""Sparse autoencoders of the residual stream: x is rebuilt from few features, x ~ W_dec^T f + b_dec.

Four ways to keep f sparse, with the objectives that the chess protocol trains (Karvonen et al. 2024, "Measuring
progress in dictionary learning for language model interpretability with board game models"). All terms are means over
tokens, and ||.||^2 is a sum over the stream's entries:

- `l1` (Bricken et al. 2023): f = relu(W_enc (x - b_dec) + b_enc); ||x - x^||^2 + l1 s w(step) sum_f f, where w rises
  from 0 to 1 in the warm-up and s is the size of the stream (`scale`): the protocol's own weight is l1 s.
- `p-anneal`: sum_f f^p in place of sum_f f, p going from 1 to `p_end` in equal steps. At each the weight is multiplied
  by mean(sum f^p at the old p) / mean(at the new p) over the last batches, so that the penalty keeps its size.
- `gated` (Rajamanoharan et al. 2024): z = W_enc (x - b_dec), g = relu(z + b_gate),
  f = 1[g > 0] relu(exp(r_mag) z + b_enc); ||x - x^||^2 + l1 s w(step) sum_f g + ||x - (W_dec^T g + b_dec)||^2, where
  the last term's decoder is held constant.
- `topk` (Gao et al. 2024): the k greatest of relu(W_enc (x - b_dec) + b_enc); ||x - x^||^2 + 1/32 ||e - W_dec^T h||^2,
  e the error x - x^ held constant, h the D / 2 greatest of the dead features.

In each, rows of the decoder have norm 1, or longer rows would make a penalty on f smaller for nothing: the part of the
gradient along a row is taken out before an update, and rows are normalised after it. The input is not normalised.
Training calls `code` on every pass, `before_update` when the gradients are complete, `after_update` once the weights
are new. What they keep is in buffers, so that a checkpoint of the module holds all of it.

Legend: T tokens, D width of the stream, F features, K features of a token, N batches that are remembered.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from glassmoe.models.features import Features, FeedForward, empty_parameters, linear_write

from .configuration import CoderConfig

AUXILIARY = 1 / 32
"""Weight of the loss that revives dead features (Gao et al. 2024, A.2)."""
REMEMBERED = 10
"""Batches over which the size of the penalty is averaged when p changes."""


class Coded(NamedTuple):
    """One pass: features, their reconstruction of the input (T, D), and the named losses, whose sum is minimised."""

    features: Features
    reconstruction: Tensor
    losses: dict[str, Tensor]


class Coder(FeedForward):
    """What the kinds share. Row f of `w_enc` (F, D) is what feature f reads, row f of `w_dec` (F, D) what it writes;
    `b_enc` (F,), `b_dec` (D,).

    `width`: D. `steps`, `tokens`: length of the fit, which the shares in `config` are shares of. Buffers: `step`, how
    many steps were taken; `scale`, root of the mean of ||x - mean||^2 in the first batch, by which penalties are
    multiplied so that `l1` means the same for a stream of any size; `silent_F`, tokens since each feature last fired,
    to the step; `fired_F` and `seen`, which features fired and how many tokens were seen since the last step.
    `counters`: the buffers to which passes add since the last step; several processes add theirs up before
    `after_update`. ValueError when the configuration does not fit the width or the length.
    """

    counters: ClassVar[tuple[str, ...]] = ("fired_F", "seen")

    step: Tensor
    scale: Tensor
    silent_F: Tensor
    fired_F: Tensor
    seen: Tensor

    def __init__(self, width: int, config: CoderConfig, steps: int, tokens: int):
        super().__init__()
        self.config = config.complete(width, tokens)
        assert self.config.features is not None and self.config.dead_tokens is not None
        self.num_features, self.dead_tokens = self.config.features, self.config.dead_tokens
        self.warmup_steps = round(config.l1_warmup * steps)
        shape = (self.num_features, width)
        self.w_enc, self.w_dec, self.b_enc, self.b_dec = empty_parameters(shape, shape, shape[:1], shape[1:])
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("silent_F", torch.zeros(self.num_features, dtype=torch.long))
        self.register_buffer("fired_F", torch.zeros(self.num_features, dtype=torch.bool))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fresh weights from torch's random state: unit decoder rows in random directions, the encoder's the same up to
        `encoder_scale`, all other parameters 0; nothing seen yet."""
        for p in self.parameters():
            p.zero_()
        for buffer in self.buffers():
            buffer.zero_()
        self.scale.fill_(1.0)
        self.w_dec.copy_(F.normalize(torch.randn_like(self.w_dec), dim=1))
        self.w_enc.copy_(self.w_dec * self.encoder_scale)

    @property
    def encoder_scale(self) -> float:
        """Norm of the encoder's first rows: 2 D / F. The sum of F random projections is F / D times the vector, and
        relu lets half of it through, so that the first reconstruction is x itself, with noise."""
        return 2 * self.w_dec.shape[1] / self.num_features

    @torch.no_grad()
    def initialise(self, x_TD: Tensor) -> None:
        """Put the output bias at the mean of a first batch (T, D) of the stream, and take the stream's scale from it,
        before the first step."""
        self.b_dec.copy_(x_TD.mean(0))
        self.scale.copy_((x_TD - self.b_dec).square().sum(1).mean().sqrt())

    def features(self, x_TD: Tensor) -> Features:
        return Features(F.relu(self.scores(x_TD)), self.num_features)

    def write(self, features: Features) -> Tensor:
        return linear_write(features, self.w_dec, self.b_dec)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The reconstruction (T, D) of the stream (T, D) and, in training, the named losses."""
        if not self.training:
            return super().forward(x_TD)
        coded = self.code(x_TD)
        return coded.reconstruction, coded.losses

    def loss(self, x_TD: Tensor) -> dict[str, Tensor]:
        """The named losses alone."""
        return self.code(x_TD).losses

    def code(self, x_TD: Tensor) -> Coded:
        """Features, reconstruction and losses of T tokens (T, D) in one pass. In training with gradients the pass also
        counts: who fired, and what the penalty was."""
        raise NotImplementedError

    def scores(self, x_TD: Tensor) -> Tensor:
        """(T, F): what each feature reads, before its activation."""
        return F.linear(x_TD - self.b_dec, self.w_enc, self.b_enc)

    @property
    def dead_F(self) -> Tensor:
        """(F,) bool: the features that have been silent for `dead_tokens` tokens."""
        return self.silent_F >= self.dead_tokens

    @torch.no_grad()
    def before_update(self) -> None:
        """To be called between the last backward pass of a step and the optimiser."""
        g_FD = self.w_dec.grad
        if g_FD is not None:
            # Rows have norm 1, so this is the gradient's part along each.
            g_FD.sub_((g_FD * self.w_dec).sum(1, keepdim=True) * self.w_dec)

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """To be called when the optimiser has taken step number `step` (from 0)."""
        self.w_dec.copy_(F.normalize(self.w_dec, dim=1))
        self.silent_F.add_(self.seen).masked_fill_(self.fired_F, 0)
        self.fired_F.zero_()
        self.seen.zero_()
        self.step.fill_(step + 1)

    @property
    def _counting(self) -> bool:
        # Reading a coder must not change it.
        return self.training and torch.is_grad_enabled()

    def _count(self, features: Features) -> None:
        if self._counting:
            self.fired_F.logical_or_(fired(features))
            self.seen.add_(len(features.values))

    def _warmup(self) -> Tensor | float:
        return (self.step / self.warmup_steps).clamp(max=1) if self.warmup_steps else 1.0


class L1(Coder):
    """A penalty on the sum of the features."""

    def code(self, x_TD: Tensor) -> Coded:
        features = self.features(x_TD)
        rebuilt_TD = self.write(features)
        self._count(features)
        losses = {"error": squared_error(x_TD, rebuilt_TD), "sparsity": self._warmup() * self._penalty(features.values)}
        return Coded(features, rebuilt_TD, losses)

    def _penalty(self, values_TF: Tensor) -> Tensor:
        return self.config.l1 * self.scale * values_TF.sum(1).mean()


class PAnneal(L1):
    """A penalty on the sum of the features to the power p. Of `anneal_updates` changes of p the first comes at
    `anneal_start`, and each value that p takes from then on has the same number of steps.

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
        # A change needs a step before it, which says how large the penalty is.
        first = max(1, round(config.anneal_start * steps))
        changes, rest = config.anneal_updates, steps - first
        if rest < changes:
            raise ValueError(
                f"coder.anneal_updates is {changes}, and {max(0, rest)} of {steps} steps come after the first change "
                f"of p; raise train.steps, or lower coder.anneal_updates or coder.anneal_start"
            )
        self.change_steps = {first + i * rest // changes for i in range(changes)}
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
        share = (self.updates + ahead).clamp(max=self.config.anneal_updates) / self.config.anneal_updates
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
            self.penalties_N2.zero_()


class Gated(Coder):
    """A gate decides who fires, a magnitude how strongly; both read the same rows of `w_enc`. The penalty is on the
    gate alone, so that it does not shrink the magnitudes. `b_gate`, `r_mag`, both (F,); `b_enc` is the magnitude's."""

    def __init__(self, width: int, config: CoderConfig, steps: int, tokens: int):
        super().__init__(width, config, steps, tokens)
        self.b_gate, self.r_mag = empty_parameters((self.num_features,), (self.num_features,))

    def features(self, x_TD: Tensor) -> Features:
        return self._gated(x_TD)[0]

    def code(self, x_TD: Tensor) -> Coded:
        features, gate_TF = self._gated(x_TD)
        rebuilt_TD = self.write(features)
        self._count(features)
        by_gate_TD = linear_write(Features(gate_TF, self.num_features), self.w_dec.detach(), self.b_dec.detach())
        losses = {
            "error": squared_error(x_TD, rebuilt_TD),
            "sparsity": self._warmup() * self.config.l1 * self.scale * gate_TF.sum(1).mean(),
            "gate_error": squared_error(x_TD, by_gate_TD),
        }
        return Coded(features, rebuilt_TD, losses)

    def scores(self, x_TD: Tensor) -> Tensor:
        return F.linear(x_TD - self.b_dec, self.w_enc)

    def _gated(self, x_TD: Tensor) -> tuple[Features, Tensor]:
        """The features, and relu of the gate's scores (T, F)."""
        scores_TF = self.scores(x_TD)
        gate_TF = F.relu(scores_TF + self.b_gate)
        magnitude_TF = F.relu(self.r_mag.exp() * scores_TF + self.b_enc)
        return Features(magnitude_TF * (gate_TF > 0), self.num_features), gate_TF


class TopK(Coder):
    """The k greatest a token, listed; a token with fewer than k above 0 lists some at 0."""

    @property
    def encoder_scale(self) -> float:
        """1 (Gao et al. 2024): of the projections only k are summed."""
        return 1.0

    def features(self, x_TD: Tensor) -> Features:
        return self._greatest(F.relu(self.scores(x_TD)), self.config.k)

    def code(self, x_TD: Tensor) -> Coded:
        positive_TF = F.relu(self.scores(x_TD))
        features = self._greatest(positive_TF, self.config.k)
        rebuilt_TD = self.write(features)
        losses = {"error": squared_error(x_TD, rebuilt_TD)}
        dead_F = self.dead_F
        if bool(dead_F.any()):
            # At -1 the others come after all the dead; those that are listed all the same count 0.
            among_TK = self._greatest(positive_TF.masked_fill(~dead_F, -1.0), min(x_TD.shape[1] // 2, len(dead_F)))
            help_TD = linear_write(
                Features(among_TK.values.clamp_min(0), self.num_features, among_TK.ids), self.w_dec, None
            )
            losses["auxiliary"] = AUXILIARY * squared_error((x_TD - rebuilt_TD).detach(), help_TD)
        else:
            losses["auxiliary"] = torch.zeros_like(losses["error"])
        self._count(features)
        return Coded(features, rebuilt_TD, losses)

    def active_parameters(self) -> int:
        unused = (self.num_features - self.config.k) * self.w_dec.shape[1]
        return super().active_parameters() - unused

    def _greatest(self, values_TF: Tensor, k: int) -> Features:
        values_TK, ids_TK = values_TF.topk(k, dim=1)
        return Features(values_TK, self.num_features, ids_TK)


CODERS: dict[str, type[Coder]] = {"topk": TopK, "l1": L1, "p-anneal": PAnneal, "gated": Gated}
"""Name of a kind -> its class."""


def build_coder(config: CoderConfig, width: int, steps: int, tokens: int) -> Coder:
    """The coder that `config` describes for a stream of `width` entries, with fresh weights from torch's random state.
    `steps`, `tokens`: length of the fit. ValueError when it does not fit them."""
    coder = CODERS[config.kind](width, config, steps, tokens)
    coder.reset_parameters()
    return coder


def squared_error(x_TD: Tensor, rebuilt_TD: Tensor) -> Tensor:
    """Mean over tokens of ||x - rebuilt||^2."""
    return (x_TD - rebuilt_TD).square().sum(1).mean()


@torch.no_grad()
def fired(features: Features) -> Tensor:
    """(F,) bool: the features above 0 on at least one of the tokens."""
    active = features.values > 0
    if features.ids is None:
        return active.any(0)
    fired_F = torch.zeros(features.width, dtype=torch.bool, device=active.device)
    fired_F[features.ids[active]] = True
    return fired_F
