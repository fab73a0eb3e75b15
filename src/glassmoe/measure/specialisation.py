"""What the experts of a mixture specialise in: the load of each, and how much the choice of experts depends on the
token, its class, its place, its document, and the source of that document.

Every choice of an expert is one observation; a token makes K choices. The mutual information of the expert and a
property is I = sum p(e, v) log2 p(e, v) / (p(e) p(v)), in bits, from counts. Finite samples overestimate it. We
therefore subtract the same number with the property shuffled over tokens, and report the difference as a share of the
experts' entropy: 1 if the property decides the expert, 0 if the two are independent.

A source consists of whole documents, so a dependence on single documents looks like a dependence on sources. The
baseline is the dependence on random groups of documents as large as the sources.

Legend: R rows, N tokens of a row, T tokens that are read, E experts, K experts per token, V values of a property, F
hidden units of one expert, D documents of a split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glassmoe.data.tokens import TokenKind
from glassmoe.layers.routers import choose
from glassmoe.model import GlassForCausalLM, MoE
from glassmoe.model.subject import activations, place_in
from glassmoe.model.swapping import layer_kind, own_layers
from glassmoe.results import Result, omitted, stored_as
from glassmoe.text.spelling import Spelling

from .position import PositionVariance, losses_without_position, relative

Int64 = npt.NDArray[np.int64]
LEAST_IN_PLACE = 100
"""Tokens in a place of the row, on average. A place is one position, or several where there are fewer tokens."""
LEAST = 20
"""Occurrences of a token, at least, before it is listed as a favourite of an expert."""
DEALS = 10
"""Random divisions of the documents into groups."""


class TokenSources(NamedTuple):
    """The documents and sources of tokens."""

    document_RN: Int64
    """The document of each token (`Rows.documents`)."""
    source_D: npt.NDArray[np.integer[Any]]
    """The source of each document of the split, as an index into `names`."""
    names: Sequence[str]


@dataclass(frozen=True)
class PropertyInformation(Result):
    """How much the choice of experts depends on one property of the tokens."""

    bits: float
    """Mutual information."""
    shuffled: float
    """The same with the property shuffled over tokens, in bits."""
    share: float
    """(`bits` - `shuffled`) / entropy of the experts."""
    dealt: float | None = omitted()
    """For the source: the mean share for random groups of documents as large as the sources."""


@dataclass(frozen=True)
class LayerExperts(Result):
    """The experts of one mixture layer."""

    layer: int
    load: list[float]
    """Share of all choices that each expert gets."""
    entropy: float
    """Entropy of the load, in bits; log2 E if all experts have the same load."""
    l0: float
    """Active units per token."""
    activity: float
    """Share of the chosen experts' units that are active."""
    information: dict[str, PropertyInformation]
    """By the name of the property (`properties_of`)."""
    tokens: list[list[list[Any]]]
    """For each expert a list of [token, ratio]: the tokens whose share of its choices most exceeds its load, with the
    ratio of the two."""
    stream_by_position: float | None = omitted()
    """Share of the variance of the layer's input that the position in the row explains (`PositionVariance.share`)."""
    scores_by_position: float | None = omitted()
    """The same for the router's scores, minus their mean over experts."""
    without_position: float | None = omitted()
    """Loss in nats when the mean of each position is subtracted from the scores of this layer alone, minus
    `ExpertsResult.loss`."""


@dataclass(frozen=True, kw_only=True)
class ExpertsResult(Result):
    """Load, sparsity and specialisation of the experts of every mixture layer."""

    FORMATS: ClassVar = {"entropy": ".2f", "L0": ".0f"}

    tokens: int
    """Tokens that were read."""
    rows_read: int = stored_as("rows")
    """Rows that were read."""
    labels: list[str] | None
    """Labels of the rows' documents; None without labels."""
    sources: dict[str, int] | None
    """Source -> its tokens; None if sources are unknown."""
    places: int
    """Parts of a row that count as different places."""
    loss: float
    """Mean next-token loss on the rows, in nats."""
    layers: list[LayerExperts]

    def rows(self) -> list[dict[str, Any]]:
        rows = []
        for layer in self.layers:
            row: dict[str, Any] = {"layer": layer.layer, "least load": min(layer.load), "most load": max(layer.load)}
            row |= {"entropy": layer.entropy, "L0": layer.l0, "activity": layer.activity}
            rows.append(row | {name: each.share for name, each in layer.information.items()})
        return rows


def experts_of(
    model: GlassForCausalLM,
    tokens_RN: npt.NDArray[Any],
    lengths_R: Int64,
    kind: TokenKind,
    *,
    labels_R: Sequence[str] | None = None,
    sources: TokenSources | None = None,
    micro_rows: int = 16,
    seed: int = 0,
) -> ExpertsResult:
    """Load, sparsity and specialisation of every mixture layer on rows of tokens. `labels_R`: a label of each row's
    document, such as its language. ValueError when no layer is a mixture."""
    mixtures = {i: layer for i, layer in own_layers(model).items() if isinstance(layer, MoE)}
    if not mixtures:
        raise ValueError(f"a {layer_kind(model)} model has no mixture of experts; give a switch or moe-x run")
    chosen, active, stream, scores = _read(model, mixtures, tokens_RN, lengths_R, micro_rows)
    means = {i: each.means() for i, each in scores.items()}
    loss, without = losses_without_position(model, mixtures, means, tokens_RN, lengths_R, micro_rows)
    properties = properties_of(tokens_RN, lengths_R, kind, labels_R, sources)
    order = np.random.default_rng(seed).permutation(int(lengths_R.sum()))
    dealt = dealt_documents(sources, lengths_R, seed) if sources and "source" in properties else []
    layers = []
    for i, layer in mixtures.items():
        experts_TK = np.concatenate(chosen[i])
        load_E = np.bincount(experts_TK.ravel(), minlength=layer.num_experts) / experts_TK.size
        l0 = active[i] / len(experts_TK)
        entropy = float(-(load_E[load_E > 0] * np.log2(load_E[load_E > 0])).sum())

        def measured(
            value_T: Int64, experts_TK: Int64 = experts_TK, entropy: float = entropy, experts: int = layer.num_experts
        ) -> PropertyInformation:
            return _information(experts_TK, value_T, value_T[order], experts, entropy)

        information = {name: measured(value_T) for name, value_T in properties.items()}
        if dealt:
            mean = float(np.mean([measured(group_T).share for group_T in dealt]))
            information["source"] = replace(information["source"], dealt=mean)
        layers.append(
            LayerExperts(
                layer=i,
                load=[round(float(share), 4) for share in load_E],
                entropy=entropy,
                l0=l0,
                activity=l0 / (layer.experts_per_token * layer.expert_hidden),
                information=information,
                tokens=_favourites(experts_TK, properties["token"], load_E, kind),
                stream_by_position=stream[i].share(),
                scores_by_position=scores[i].share(),
                without_position=without[i] - loss,
            )
        )
    counts = np.bincount(properties.get("source", np.zeros(0, np.int64))).tolist()
    return ExpertsResult(
        tokens=int(lengths_R.sum()),
        rows_read=len(tokens_RN),
        labels=None if labels_R is None else sorted(set(labels_R)),
        sources={sources.names[number]: count for number, count in enumerate(counts) if count} if sources else None,
        places=places(lengths_R, tokens_RN.shape[1]),
        loss=loss,
        layers=layers,
    )


def places(lengths_R: Int64, length: int) -> int:
    """Number of equally long parts of rows of `length` tokens that count as places."""
    return max(1, min(length, int(lengths_R.sum()) // LEAST_IN_PLACE))


def dealt_documents(sources: TokenSources, lengths_R: Int64, seed: int = 0) -> list[Int64]:
    """`DEALS` random divisions of the documents into groups: each is the group of every token, (T,). The documents, in
    random order, are cut into groups of about as many tokens as the sources have. A document belongs to the group of
    its middle token."""
    inside_RN = np.arange(sources.document_RN.shape[1]) < lengths_R[:, None]
    read, document_T = np.unique(sources.document_RN[inside_RN], return_inverse=True)
    tokens_D, rng, dealt = np.bincount(document_T), np.random.default_rng([seed, 1]), []
    ends = np.cumsum(np.bincount(sources.source_D[read], weights=tokens_D))
    for _ in range(DEALS):
        order = rng.permutation(len(read))
        middles = np.cumsum(tokens_D[order]) - tokens_D[order] / 2
        group_D = np.empty(len(read), np.int64)
        group_D[order] = np.searchsorted(ends, middles, side="right")
        dealt.append(group_D[document_T])
    return dealt


def mutual_information(a_T: Int64, b_T: Int64) -> float:
    """Mutual information, in bits, of two properties of the same items (numbers from 0): sum of p(a, b) log2 p(a, b) /
    (p(a) p(b))."""
    table = np.zeros((int(a_T.max()) + 1, int(b_T.max()) + 1))
    np.add.at(table, (a_T, b_T), 1 / len(a_T))
    independent = table.sum(1, keepdims=True) * table.sum(0, keepdims=True)
    present = table > 0
    return float((table[present] * np.log2(table[present] / independent[present])).sum())


def properties_of(
    tokens_RN: npt.NDArray[Any],
    lengths_R: Int64,
    kind: TokenKind,
    labels_R: Sequence[str] | None = None,
    sources: TokenSources | None = None,
) -> dict[str, Int64]:
    """Properties of every token, as numbers from 0, each (T,), rows in order and without padding: the `token`
    itself, the token `before` it, its `class` (if `TokenKind.classes` exists), its `place` in the row, the label of its
    `document` (if rows have labels), and the `source` of its document (if there are several)."""
    inside_RN = np.arange(tokens_RN.shape[1]) < lengths_R[:, None]
    token_RN = tokens_RN.astype(np.int64)
    # The first token of a row has no token before it: an extra value.
    before_RN = np.concatenate([np.full((len(token_RN), 1), kind.size), token_RN[:, :-1]], axis=1)
    length = tokens_RN.shape[1]
    place_RN = np.broadcast_to(np.arange(length) * places(lengths_R, length) // length, tokens_RN.shape)
    properties = {"token": token_RN[inside_RN], "before": before_RN[inside_RN], "place": place_RN[inside_RN]}
    names = kind.classes
    if names is not None:
        number = {name: n for n, name in enumerate(sorted(set(names)))}
        properties["class"] = np.array([number[name] for name in names])[properties["token"]]
    if labels_R is not None:
        number = {name: n for n, name in enumerate(sorted(set(labels_R)))}
        document_R = np.array([number[label] for label in labels_R])
        properties["document"] = np.broadcast_to(document_R[:, None], tokens_RN.shape)[inside_RN]
    if sources is not None:
        source_T = sources.source_D[sources.document_RN[inside_RN]].astype(np.int64)
        if len(np.unique(source_T)) > 1:
            properties["source"] = source_T
    return properties


@torch.no_grad()
def _read(
    model: GlassForCausalLM, mixtures: Mapping[int, MoE], tokens_RN: Any, lengths_R: Int64, micro_rows: int
) -> tuple[dict[int, list[Int64]], dict[int, float], dict[int, PositionVariance], dict[int, PositionVariance]]:
    """For each layer the chosen experts of all tokens, (T, K) in parts; the number of units above 0; and how much its
    input and its router's scores depend on the position."""
    chosen: dict[int, list[Int64]] = {i: [] for i in mixtures}
    active = dict.fromkeys(mixtures, 0.0)
    stream, by_scores = ({i: PositionVariance(tokens_RN.shape[1]) for i in mixtures} for _ in range(2))
    device = next(model.parameters()).device
    modules = {i: place_in(model, i, "mlp") for i in mixtures}
    for start in range(0, len(tokens_RN), micro_rows):
        part = slice(start, start + micro_rows)
        tokens = torch.from_numpy(tokens_RN[part].astype(np.int64)).to(device)
        inside = torch.from_numpy(np.arange(tokens_RN.shape[1]) < lengths_R[part, None]).to(device)
        position_T = torch.arange(tokens_RN.shape[1], device=device).expand_as(tokens)[inside]
        read = activations(model, list(modules.values()), tokens)
        for i, layer in mixtures.items():
            x_TD: Tensor = read[modules[i]].x[inside]
            scores_TE = layer.scores(x_TD)
            stream[i].add(x_TD, position_T)
            by_scores[i].add(relative(scores_TE), position_T)
            chosen[i].append(choose(scores_TE, layer.experts_per_token)[1].cpu().numpy())
            active[i] += float(layer.active(layer.features(x_TD)).sum())
    return chosen, active, stream, by_scores


def _information(
    experts_TK: Int64, value_T: Int64, shuffled_T: Int64, experts: int, entropy: float
) -> PropertyInformation:
    choices = experts_TK.ravel()
    assert int(choices.max()) < experts
    per_token = experts_TK.shape[1]
    bits, chance = (mutual_information(choices, np.repeat(values, per_token)) for values in (value_T, shuffled_T))
    return PropertyInformation(bits, chance, (bits - chance) / entropy if entropy else 0.0)


def _favourites(
    experts_TK: Int64, token_T: Int64, load_E: npt.NDArray[np.float64], kind: TokenKind, most: int = 8
) -> list[list[list[Any]]]:
    """The field `LayerExperts.tokens`."""
    table_VE = np.zeros((kind.size, len(load_E)))
    np.add.at(table_VE, (np.repeat(token_T, experts_TK.shape[1]), experts_TK.ravel()), 1)
    read_V = table_VE.sum(1) / experts_TK.shape[1]
    known = np.flatnonzero(read_V >= LEAST)
    lift_VE = table_VE[known] / np.maximum(table_VE[known].sum(1, keepdims=True) * load_E, 1e-12)
    favourites, spelling = [], Spelling(kind)
    for expert in range(len(load_E)):
        best = np.argsort(-lift_VE[:, expert], kind="stable")[:most]
        named = [(spelling.one(int(known[b])) or kind.vocabulary[known[b]], lift_VE[b, expert]) for b in best]
        favourites.append([[text, round(float(lift), 2)] for text, lift in named if lift > 1])
    return favourites
