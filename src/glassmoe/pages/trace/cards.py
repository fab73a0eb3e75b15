"""Cards of the features in a graph: explanation, strongest examples and what they write, from what `explain` stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from glassmoe.console import say
from glassmoe.inspect.readers import Reader
from glassmoe.inspect.store import MANIFEST, store_path
from glassmoe.model.subject import Subject
from glassmoe.pages.explore.directions import HOW, Logits, moved_logits, unit_writes
from glassmoe.pages.explore.explored import ExploredLayer, explored_layer
from glassmoe.pages.explore.records import Recorder, Relations, explanation_record, rounded
from glassmoe.tracing.graph import FEATURE, Graph

from .results import CardRecord

EXAMPLES, LOGITS = 3, 8
Cards = dict[tuple[int, int], CardRecord]
"""(source, feature) -> card."""


def open_examples(run: str | Path, subject: Subject, readers: Mapping[str, Reader]) -> list[ExploredLayer]:
    """Those layers or coders of an opened run that have examples. Examples that cannot be read, or are of other
    weights, are left out, and the reason is printed."""
    found, is_of = [], cache(subject.has_weights)  # all weights are read for an answer
    for reader in readers.values():
        store = store_path(run, reader.name)
        if not (store / MANIFEST).is_file():
            continue
        try:
            found.append(explored_layer(Path(run), Path(run).name, reader.name, store, subject, reader, is_of))
        except ValueError as error:
            say(f"the page shows no examples of {reader.name}: {error}")
    return found


def features_of(graph: Graph) -> dict[tuple[int, int], float]:
    """(source, feature) -> its greatest influence at any token, the most influential first."""
    found: dict[tuple[int, int], float] = {}
    nodes = graph.nodes
    for node in np.flatnonzero((nodes.kind == FEATURE) & (nodes.feature >= 0)):
        key = (int(nodes.source[node]), int(nodes.feature[node]))
        found[key] = max(found.get(key, 0.0), float(nodes.influence[node]))
    return dict(sorted(found.items(), key=lambda entry: (-entry[1], entry[0])))


def layers_of(graph: Graph, explored: Sequence[ExploredLayer]) -> dict[int, ExploredLayer]:
    """Source -> the layer or coder with examples that has its name."""
    named = {layer.reader.name: layer for layer in reversed(explored)}
    return {number: named[name] for number, name in enumerate(graph.sources) if name in named}


def cards_of(graph: Graph, explored: Sequence[ExploredLayer]) -> Cards:
    """The cards of the features of a graph, the most influential first. Features of layers without examples have
    none."""
    layers = layers_of(graph, explored)
    keys = [key for key in features_of(graph) if key[0] in layers]
    recorders = {number: _recorder(layer, [f for s, f in keys if s == number]) for number, layer in layers.items()}
    return {(source, feature): _card(recorders[source], feature) for source, feature in keys}


def how_of(layers: Mapping[int, ExploredLayer], source: int) -> str:
    """What the logits on the cards of a source mean; empty where cards have none."""
    writes = layers[source].reader.layer.writes if source in layers else ""
    return HOW[writes] if writes == "linear" else ""


def _recorder(layer: ExploredLayer, features: Sequence[int]) -> Recorder:
    boards = not layer.of_text and find_spec("chess") is not None
    up, down = _logits(layer, features)
    return Recorder(layer, Relations(read=None, written=None, up=up, down=down), boards)


def _logits(layer: ExploredLayer, features: Sequence[int]) -> tuple[Logits, Logits] | tuple[None, None]:
    """What these features write, as rows of all features; the rows of others are empty."""
    if layer.reader.layer.writes != "linear" or not features:
        return None, None
    chosen = np.unique(features)
    device = next(layer.subject.model.parameters()).device
    rows_FD = unit_writes(layer.reader.layer, device)[chosen]
    found = moved_logits(layer.subject, rows_FD, LOGITS, layer.store)
    wide = []
    for few in found:
        shape = (layer.store.num_features, few.tokens_FK.shape[1])
        every = Logits(np.zeros(shape, few.tokens_FK.dtype), np.zeros(shape, few.values_FK.dtype))
        every.tokens_FK[chosen], every.values_FK[chosen] = few.tokens_FK, few.values_FK
        wide.append(every)
    return wide[0], wide[1]


def _card(recorder: Recorder, feature: int) -> CardRecord:
    layer, store, relations = recorder.layer, recorder.store, recorder.relations
    return CardRecord(
        count=int(store.counts_F[feature]),
        max=rounded(store.maxima_F[feature]),
        said=[explanation_record(line) for line in layer.explained.get(feature, [])],
        board=layer.board(feature),
        top=recorder.examples(store.top(feature, EXAMPLES)),
        up=recorder.tokens_of(relations.up, feature),
        down=recorder.tokens_of(relations.down, feature),
    )
