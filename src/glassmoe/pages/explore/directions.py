"""Directions of the residual stream that features read and write: nearest features, and the logits that they move.

A feature reads row f of the encoder. What it writes depends on the layer. `linear`: what one unit of strength adds to
the stream. `nonlinear` (SoLU): the same, with the norm's statistics held fixed. `token`: the mean, over the feature's
strongest examples, of what it adds there per unit of strength. Logits are those of the unembedding on that direction
alone: without the final norm, and minus the mean over the vocabulary, since only differences of logits count. Tokens
that the read text never has are left out.

Legend: F features, D width of the stream, V vocabulary, T tokens, K neighbours or logits shown.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glassmoe.console import bar
from glassmoe.inspect.store import FeatureStore
from glassmoe.layers.features import Features, FeedForward
from glassmoe.model.subject import Place, Subject, activations

BLOCK = 1024
ROWS = 1 << 12
"""Rows of a store that are read at once."""
TOKENS_AT_ONCE = 128
EXAMPLES = 4
"""Strongest examples over which token-dependent writes are averaged."""
HOW = {
    "linear": "What one unit of the feature's strength adds to each logit, by the unembedding alone: before the final "
    "norm, minus the mean over the vocabulary.",
    "token": f"What the feature writes depends on the token. This is the mean over its {EXAMPLES} strongest examples "
    "of what it adds there, for each unit of strength, through the unembedding alone: before the final norm, minus the "
    "mean over the vocabulary.",
    "nonlinear": "The layer's own norm is held still (its mean and scale are those of no token): the feature's row "
    "times the norm's gain, through the unembedding alone, before the final norm, minus the mean over the vocabulary. "
    "Only the order and the proportions mean something.",
}


class Nearest(NamedTuple):
    """The K nearest features of each feature by cosine, both (F, K); feature -1 where there is none."""

    features_FK: np.ndarray
    cosines_FK: np.ndarray


class Logits(NamedTuple):
    """The K tokens whose logits each feature moves most, both (F, K)."""

    tokens_FK: np.ndarray
    values_FK: np.ndarray


def read_rows(layer: FeedForward) -> Tensor | None:
    """(F, D): the encoder row of each feature; None for a layer without encoder rows."""
    w_enc = getattr(layer, "w_enc", None)
    if not isinstance(w_enc, Tensor) or w_enc.numel() != layer.num_features * w_enc.shape[-1]:
        return None
    return w_enc.detach().float().reshape(layer.num_features, -1)


@torch.no_grad()
def written_rows(subject: Subject, layer: FeedForward, place: Place, store: FeatureStore) -> Tensor | None:
    """(F, D): what each feature writes, as the module docstring says. Zeros for silent features of a `token` layer;
    None for a nonlinear layer other than SoLU."""
    if layer.writes == "linear":
        return unit_writes(layer, next(subject.model.parameters()).device)
    if layer.writes == "token":
        return example_writes(subject, layer, place, store)
    norm, w_dec = getattr(layer, "norm", None), getattr(layer, "w_dec", None)
    if not isinstance(norm, torch.nn.LayerNorm) or not isinstance(w_dec, Tensor):
        return None
    return norm.weight.float().unsqueeze(1) * w_dec.float()


@torch.no_grad()
def unit_writes(layer: FeedForward, device: torch.device) -> Tensor:
    """(F, D): what one unit of each feature of a linear layer adds to the stream."""
    width = layer.num_features
    nothing_D = layer.write(Features(torch.zeros(1, width, device=device), width))
    rows = []
    for first in range(0, width, BLOCK):
        chosen = torch.arange(first, min(first + BLOCK, width), device=device)
        one_BF = F.one_hot(chosen, width).float()
        rows.append(layer.write(Features(one_BF, width)) - nothing_D)
    return torch.cat(rows)


@torch.no_grad()
def example_writes(
    subject: Subject, layer: FeedForward, place: Place, store: FeatureStore, examples: int = EXAMPLES
) -> Tensor:
    """(F, D): the mean, over each feature's strongest examples, of what it adds there per unit of strength."""
    device = next(subject.model.parameters()).device
    row_T, place_T, feature_T = _peaks(store, examples)
    total_FD = torch.zeros(layer.num_features, subject.width, device=device)
    count_F = torch.zeros(layer.num_features, device=device)
    rows, batch = np.unique(row_T), store.manifest["batch_rows"]
    with bar(len(rows), "reading what features write", "row") as progress:
        for first in range(0, len(rows), batch):
            some = rows[first : first + batch]
            tokens = torch.from_numpy(store.rows_RN[some].astype(np.int64)).to(device)
            x_RND = activations(subject.model, [place], tokens)[place].x
            here = np.flatnonzero(np.isin(row_T, some))
            for start in range(0, len(here), TOKENS_AT_ONCE):
                at = here[start : start + TOKENS_AT_ONCE]
                feature = torch.from_numpy(feature_T[at]).to(device)
                x_TD = x_RND[np.searchsorted(some, row_T[at]), place_T[at]]
                added_TD, strength_T = added(layer, x_TD, feature)
                fires = strength_T > 0
                total_FD.index_add_(0, feature[fires], (added_TD / strength_T.unsqueeze(1))[fires])
                count_F.index_add_(0, feature[fires], torch.ones_like(strength_T[fires]))
            progress.update(len(some))
    return total_FD / count_F.clamp_min(1).unsqueeze(1)


def added(layer: FeedForward, x_TD: Tensor, feature_T: Tensor) -> tuple[Tensor, Tensor]:
    """(T, D), (T,): what feature `feature_T[t]` adds at token t with the context fixed, and its strength."""
    features = layer.features(x_TD)
    own_T1 = feature_T.unsqueeze(1)
    hit_TA = F.one_hot(feature_T, features.width).bool() if features.ids is None else features.ids == own_T1
    without = replace(features, values=features.values.masked_fill(hit_TA, 0.0))
    strength_T = (features.values * hit_TA).sum(1).float()
    return (layer.write(features) - layer.write(without)).float(), strength_T


def _peaks(store: FeatureStore, examples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, position in it and feature, of the strongest examples of every feature."""
    rows, places, features = [], [], []
    for feature in range(store.num_features):
        top = store.top(feature, examples)
        rows.append(top.rows_E)
        places.append(top.starts_E + top.strengths_EL.argmax(1) if len(top) else top.starts_E)
        features.append(np.full(len(top), feature, np.int64))
    return np.concatenate(rows), np.concatenate(places), np.concatenate(features)


@torch.no_grad()
def nearest(rows_FD: Tensor, count: int) -> Nearest:
    """The `count` other rows with the greatest cosine, for every row; rows of zeros are near none."""
    unit_FD = F.normalize(rows_FD.float(), dim=1)
    empty_F = rows_FD.norm(dim=1) == 0
    count = min(count, len(unit_FD) - 1)
    ids, cosines = [], []
    for first in range(0, len(unit_FD), BLOCK):
        some_BF = unit_FD[first : first + BLOCK] @ unit_FD.T
        some_BF[:, empty_F] = -2.0
        some_BF[torch.arange(len(some_BF)), torch.arange(first, first + len(some_BF))] = -2.0
        top = some_BF.topk(count, dim=1)
        alone = empty_F[first : first + BLOCK].unsqueeze(1) | (top.values < -1.5)
        ids.append(top.indices.masked_fill(alone, -1))
        cosines.append(top.values.clamp(-1, 1))
    return Nearest(torch.cat(ids).cpu().numpy(), torch.cat(cosines).cpu().numpy())


@torch.no_grad()
def moved_logits(subject: Subject, rows_FD: Tensor, count: int, store: FeatureStore) -> tuple[Logits, Logits]:
    """The tokens that each direction makes likelier, and those that it makes less likely, among those that the rows of
    the store have. Tokens that no text has were all trained in the same way, so that their logits tie and would fill
    both lists."""
    w_VD = subject.model.get_output_embeddings().weight.detach().float()
    absent_V = torch.ones(len(w_VD), dtype=torch.bool, device=w_VD.device)
    for start in range(0, len(store.rows_RN), ROWS):
        rows_RN, lengths_R = store.rows_RN[start : start + ROWS], store.lengths_R[start : start + ROWS]
        here = np.unique(rows_RN[np.arange(rows_RN.shape[1]) < lengths_R[:, None]])
        absent_V[torch.from_numpy(here.astype(np.int64)).to(w_VD.device)] = False
    count = min(count, int((~absent_V).sum()))
    up, down = [], []
    for some_BD in rows_FD.split(BLOCK):
        logits_BV = some_BD @ w_VD.T
        logits_BV = logits_BV - logits_BV.mean(1, keepdim=True)
        up.append(logits_BV.masked_fill(absent_V, -torch.inf).topk(count, dim=1))
        down.append(logits_BV.masked_fill(absent_V, torch.inf).topk(count, dim=1, largest=False))
    return _joined(up), _joined(down)


def _joined(parts: list[torch.return_types.topk]) -> Logits:
    return Logits(*(torch.cat([part[i] for part in parts]).cpu().numpy() for i in (1, 0)))
