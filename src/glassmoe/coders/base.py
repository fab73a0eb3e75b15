"""What all coders share: one pass from input to reconstruction, the count of silent features, the norm of the decoder;
and for coders that list k features per token, the loss that revives dead features.

A coder reads x and rebuilds y from few features: x itself (an autoencoder, `sae.py`), or the output of the MLP whose
input x is (`transcoder.py`, `mxd.py`). All losses are means over tokens, so that the size of passes and the number of
processes change only rounding. The exception is `batchtopk`, which chooses among the tokens of a pass. The loss named
`error` is that of the reconstruction. Training calls `code` on every pass, `before_update` when the gradients are
complete, and `after_update` when the weights are updated. All state is in buffers, so that a checkpoint of the module
holds all of it.

Legend: T tokens, D width of what is read and rebuilt, F features, K features of a token.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from glassmoe.layers.features import Features, FeedForward, empty_parameters, linear_write
from glassmoe.layers.sparse_ops import linear_in, read_rows, strengths, write_rows

from .configuration import CoderConfig


class Coded(NamedTuple):
    """One pass: features, their reconstruction of the target (T, D), and the named losses, whose sum is minimised."""

    features: Features
    reconstruction: Tensor
    losses: dict[str, Tensor]


class CodingPass(NamedTuple):
    """What the losses of one pass are made of, in the units of the coder: what is read and what is to be rebuilt, both
    (T, D), the features, the reconstruction (T, D), and what `_encode` returned beside the features."""

    x: Tensor
    y: Tensor
    features: Features
    rebuilt: Tensor
    chosen_by: Tensor


class Coder(FeedForward):
    """What the kinds share. Row f of `w_enc` (F, D) is what feature f reads, row f of `w_dec` (F, D) what it writes;
    `b_enc` (F,), `b_dec` (D,).

    `width`: D. `steps`, `tokens`: length of the fit, which the shares in `config` are shares of. ValueError when the
    configuration does not fit the width or the length. A subclass implements `_encode` and `_losses`, and may set:
    `stands_for_mlp`, whether the kind reads the input of an MLP and rebuilds its output (else it rebuilds what it
    reads); `uses_k`, whether `config.k` features of a token are used; `unit_rows`, whether decoder rows are held at
    norm 1; `counters`, the buffers to which passes add since the last step (several processes add theirs up before
    `after_update`).

    Buffers: `step`, how many steps were taken; `scale`, root of the mean of ||y - mean||^2 in the first batch, by which
    penalties are multiplied so that their weights mean the same for a target of any size; `silent_F`, tokens since each
    feature last fired, to the step; `fired_F` and `seen`, which features fired and how many tokens were seen since the
    last step; with `normalise: rms` also `x_rms` and `y_rms`, root mean squares of the entries in the first batch: x
    and y are divided by them, so that features, parameters and losses are in these units, and what is written is
    multiplied back.
    """

    row_methods: ClassVar[tuple[str, ...]] = (*FeedForward.row_methods, "code", "loss", "scores", "initialise")
    counters: ClassVar[tuple[str, ...]] = ("fired_F", "seen")
    stands_for_mlp: ClassVar[bool] = False
    uses_k: ClassVar[bool] = False
    unit_rows: bool = True
    product_dtype: torch.dtype | None = None
    """Type of large products in training, of kinds that list k features (default: that of the weights)."""

    step: Tensor
    scale: Tensor
    silent_F: Tensor
    fired_F: Tensor
    seen: Tensor
    x_rms: Tensor
    y_rms: Tensor

    def __init__(self, width: int, config: CoderConfig, steps: int, tokens: int):
        super().__init__()
        self.config = config.complete(width, tokens)
        assert self.config.features is not None and self.config.dead_tokens is not None
        self.num_features, self.dead_tokens = self.config.features, self.config.dead_tokens
        self.input_width = width
        self.warmup_steps = round(config.l1_warmup * steps)
        self.normalised = config.normalise == "rms"
        shape = (self.num_features, width)
        self.w_enc, self.w_dec, self.b_enc, self.b_dec = empty_parameters(shape, shape, shape[:1], shape[1:])
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("silent_F", torch.zeros(self.num_features, dtype=torch.long))
        self.register_buffer("fired_F", torch.zeros(self.num_features, dtype=torch.bool))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        if self.normalised:
            self.register_buffer("x_rms", torch.ones(()))
            self.register_buffer("y_rms", torch.ones(()))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights from torch's random state and clear all counts."""
        for p in self.parameters():
            p.zero_()
        for buffer in self.buffers():
            buffer.zero_()
        for unit in (self.scale, *((self.x_rms, self.y_rms) if self.normalised else ())):
            unit.fill_(1.0)
        self._draw()

    def _draw(self) -> None:
        """Draw the initial weights that are not 0: decoder rows of norm 1 in random directions, and encoder rows that
        are these times `encoder_scale`."""
        self.w_dec.copy_(F.normalize(torch.randn_like(self.w_dec), dim=1))
        self.w_enc.copy_(self.w_dec * self.encoder_scale)

    @property
    def encoder_scale(self) -> float:
        """Initial norm of encoder rows: 2 D / F. The sum of F random projections is F / D times the vector, and relu
        lets half of it through, so that the initial reconstruction is x itself, with noise."""
        return 2 * self.w_dec.shape[1] / self.num_features

    @torch.no_grad()
    def initialise(self, x_TD: Tensor, y_TD: Tensor | None = None) -> None:
        """Set the output bias to the mean of a first batch (T, D) of targets (x itself where no y is given), and the
        targets' scale and, with `normalise: rms`, both root mean squares from it. To be called before the first
        step."""
        y_TD = x_TD if y_TD is None else y_TD
        if self.normalised:
            for rms, v_TD in ((self.x_rms, x_TD), (self.y_rms, y_TD)):
                size = v_TD.square().mean().sqrt()
                rms.copy_(torch.where(size > 0, size, 1.0))
        y_TD = self._target(x_TD, y_TD)
        self.b_dec.copy_(y_TD.mean(0))
        self.scale.copy_((y_TD - self.b_dec).square().sum(1).mean().sqrt())

    def features(self, x_TD: Tensor) -> Features:
        return self._encode(self._read(x_TD))[0]

    def write(self, features: Features) -> Tensor:
        return self._restored(self._decode(features))

    def encode(self, x: Tensor, *, grad: bool = False) -> Features:
        """The features of activations (..., D) of any float type, computed in float32 whatever the autocast state.
        `grad`: whether gradients flow. ValueError for another last dimension than D."""
        with torch.set_grad_enabled(grad), torch.autocast(x.device.type, enabled=False):
            features: Features = self.features(x.to(self.w_dec.dtype))
            return features

    def decode(self, features: Features, *, grad: bool = False) -> Tensor:
        """The reconstruction (..., D) from features, such as `encode` returns, in float32. `grad`: whether gradients
        flow. ValueError for features of another coder."""
        with torch.set_grad_enabled(grad), torch.autocast(features.values.device.type, enabled=False):
            rebuilt: Tensor = self.write(features)
            return rebuilt

    def forward(self, x_TD: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The reconstruction (T, D) of an input (T, D) and, in training, the named losses of an autoencoder."""
        if not self.training:
            return super().forward(x_TD)
        coded = self.code(x_TD)
        return coded.reconstruction, coded.losses

    def loss(self, x_TD: Tensor, y_TD: Tensor | None = None) -> dict[str, Tensor]:
        """The named losses alone."""
        return self.code(x_TD, y_TD).losses

    def code(self, x_TD: Tensor, y_TD: Tensor | None = None) -> Coded:
        """Features, reconstruction and losses of T tokens in one pass. `x_TD` (T, D) is read; `y_TD` (T, D) is the
        target, x itself where none is given. In training with gradients the pass also counts which features fired."""
        y_TD, x_TD = self._target(x_TD, y_TD), self._read(x_TD)
        features, chosen_by = self._encode(x_TD)
        rebuilt_TD = self._decode(features)
        losses = {"error": self._size(y_TD - rebuilt_TD, y_TD)}
        losses |= self._losses(CodingPass(x_TD, y_TD, features, rebuilt_TD, chosen_by))
        if self._counting:
            self._count(features)
        return Coded(features, self._restored(rebuilt_TD), losses)

    def _encode(self, x_TD: Tensor) -> tuple[Features, Tensor]:
        """The features, and what the losses need of how they were chosen."""
        raise NotImplementedError

    def _decode(self, features: Features) -> Tensor:
        """(T, D): the reconstruction."""
        return self._directions(features) + self.b_dec

    def _directions(self, features: Features) -> Tensor:
        """(T, D): what the features alone write."""
        if features.ids is None:
            return linear_write(features, self.w_dec, None)
        return write_rows(features.values, features.ids, self.w_dec)

    def _size(self, error_TD: Tensor, y_TD: Tensor) -> Tensor:
        """The size of errors (T, D) of targets (T, D): the mean over tokens of ||error||^2."""
        del y_TD
        return error_TD.square().sum(1).mean()

    def _losses(self, coded: CodingPass) -> dict[str, Tensor]:
        """The losses besides the error."""
        raise NotImplementedError

    def scores(self, x_TD: Tensor) -> Tensor:
        """(T, F): what each feature reads, before its activation."""
        return F.linear(self._centred(x_TD), self.w_enc, self.b_enc)

    @property
    def _rounds(self) -> bool:
        return self.training and self.product_dtype not in (None, self.w_dec.dtype)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear_in(self.product_dtype if self._rounds else None, x, weight, bias)

    def _centred(self, x_TD: Tensor) -> Tensor:
        """What the encoder's rows read: an autoencoder subtracts the bias that its decoder adds."""
        return x_TD - self.b_dec

    @property
    def dead_F(self) -> Tensor:
        """(F,) bool: the features that have been silent for `dead_tokens` tokens."""
        return self.silent_F >= self.dead_tokens

    @torch.no_grad()
    def before_update(self) -> None:
        """To be called between the last backward pass of a step and the optimizer."""
        g_FD = self.w_dec.grad
        if g_FD is not None and self.unit_rows:
            # Rows have norm 1, so this is the gradient's part along each.
            g_FD.sub_((g_FD * self.w_dec).sum(1, keepdim=True) * self.w_dec)

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """To be called when the optimizer has taken step number `step` (from 0)."""
        if self.unit_rows:
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
        self.fired_F.logical_or_(fired(features))
        self.seen.add_(len(features.values))

    def _warmup(self) -> Tensor | float:
        return (self.step / self.warmup_steps).clamp(max=1) if self.warmup_steps else 1.0

    def _read(self, x_TD: Tensor) -> Tensor:
        return x_TD / self.x_rms if self.normalised else x_TD

    def _target(self, x_TD: Tensor, y_TD: Tensor | None) -> Tensor:
        y_TD = x_TD if y_TD is None else y_TD
        return y_TD / self.y_rms if self.normalised else y_TD

    def _restored(self, rebuilt_TD: Tensor) -> Tensor:
        return rebuilt_TD * self.y_rms if self.normalised else rebuilt_TD


class ListedCoder(Coder):
    """Lists the k features of a token with the greatest scores above 0, and revives dead features (Gao et al. 2024,
    A.2): with `auxiliary` above 0, the D / 2 greatest of the dead features learn to rebuild the error, held constant.

    Gradients of encoder and decoder are made from the listed rows alone (`layers.sparse_ops`).
    """

    uses_k = True

    def __init__(self, width: int, config: CoderConfig, steps: int, tokens: int):
        super().__init__(width, config, steps, tokens)
        assert self.config.auxiliary is not None
        self.auxiliary = self.config.auxiliary

    def _encode(self, x_TD: Tensor) -> tuple[Features, Tensor]:
        """The features, and all scores (T, F)."""
        with torch.no_grad():  # Gradients come from the few that are chosen.
            scores_TF = self._linear(self._centred(x_TD), self.w_enc, self.b_enc)
            ids_TK, positive_TK = self._choose(scores_TF)
        return self._listed(x_TD, ids_TK, positive_TK), scores_TF

    def _choose(self, scores_TF: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and strengths, both (T, K), of a token's features: a token with fewer than K above 0 lists some at 0."""
        # relu comes last, for it costs as much as the product where it runs over all.
        chosen_TK, ids_TK = scores_TF.topk(self.config.k, dim=1)
        return ids_TK, F.relu(chosen_TK)

    def _listed(self, x_TD: Tensor, ids_TK: Tensor, positive_TK: Tensor) -> Features:
        x_TD = self._centred(x_TD)
        if self._rounds:
            positive_TK = strengths(x_TD, self.w_enc, self.b_enc, ids_TK, positive_TK)
        return Features(read_rows(x_TD, self.w_enc, self.b_enc, ids_TK, positive_TK), self.num_features, ids_TK)

    def _losses(self, coded: CodingPass) -> dict[str, Tensor]:
        if not self.auxiliary:
            return {}
        dead_F, none = self.dead_F, torch.zeros((), dtype=coded.y.dtype, device=coded.y.device)
        among = min(coded.x.shape[1] // 2, self.num_features)
        if dead_F.device.type == "cpu":
            among = min(among, int(dead_F.sum()))
            if not among:
                return {"auxiliary": none}
        # A GPU, which would have to be waited for, may choose among more than are dead: these have strength 0.
        dead_TA, ids_TA = coded.chosen_by.masked_fill(~dead_F, -torch.inf).topk(among, dim=1)
        dead = replace(self._listed(coded.x, ids_TA, F.relu(dead_TA)), context=coded.features.context)
        missing_TD = (coded.y - coded.rebuilt).detach()
        loss = self.auxiliary * self._size(missing_TD - self._help(dead), coded.y)
        return {"auxiliary": torch.where(dead_F.any(), loss, none)}

    def _help(self, dead: Features) -> Tensor:
        """(T, D): what the dead features of the auxiliary loss write."""
        return self._directions(dead)

    def active_parameters(self) -> int:
        unused = (self.num_features - self.config.k) * self.w_dec.shape[1]
        return super().active_parameters() - unused


@torch.no_grad()
def fired(features: Features) -> Tensor:
    """(F,) bool: the features above 0 on at least one of the tokens."""
    active = features.values > 0
    if features.ids is None:
        return active.reshape(-1, features.width).any(0)
    fired_F = torch.zeros(features.width, dtype=torch.int32, device=active.device)
    return fired_F.scatter_add_(0, features.ids.flatten(), active.flatten().int()) > 0
