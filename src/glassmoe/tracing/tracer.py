"""From a model and a prompt to the attribution graph: docs/trace.md has the definitions.

Legend: S positions, L blocks, M sources, K targets, N nodes, E edges, D width, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from glassmoe.coders.base import Coder
from glassmoe.coders.mxd import MxD
from glassmoe.coders.names import is_meant, require_coder, short_name
from glassmoe.layers.features import FeedForward
from glassmoe.layers.moe import MoE
from glassmoe.model.families import family_of
from glassmoe.model.importing import FAMILIES, imported_model
from glassmoe.model.loading import OWN
from glassmoe.model.subject import Place, Subject
from glassmoe.model.swapping import layer_kind, own_layers
from glassmoe.text.spelling import Spelling

from .acting import act
from .active import decided_by_context
from .assembly import Assembly
from .details import detailed
from .expansion import Expansion
from .frozen import FrozenModel
from .graph import Graph
from .holding import PATTERNS, Pattern
from .prompts import choose_targets, read_prompt
from .rows import RowMaker

FEATURES = 7500
"""Features whose rows are made, at most: the default of the public engine."""

Layers = dict[int, tuple[str, FeedForward]]


class Tracer:
    """A model opened for tracing. `parts`: name -> what reads, and where: the feed-forward layers of a model of ours,
    or coders that stand for the MLPs of a model. In a model of transformers some of whose MLPs were
    replaced, the new layers are traced, and the other MLPs are error nodes.

    ValueError, in one sentence, for a model without features, a model of a family whose attention and norms cannot be
    held, and coders that do not stand for MLPs.
    """

    def __init__(self, subject: Subject, parts: Mapping[str, tuple[FeedForward, Place]], coder: str | None = None):
        self.subject = subject
        family, own = family_of(subject.model.config), subject.model.config.model_type == OWN
        coders = {name: each for name, each in parts.items() if isinstance(each[0], Coder)}
        replaced = {} if own else own_layers(subject.model)
        if not own and not coders and not replaced:
            raise ValueError(
                f"{subject.name} has no features to trace: its MLPs are dense; fit coders to all of its layers with "
                f"glassmoe decompose (--coders transcoder --layers 0-{subject.layers - 1}), or make a mixture of it "
                f"with glassmoe upcycle"
            )
        if not own and family not in FAMILIES:
            raise ValueError(
                f"{subject.name} is a {family} model, whose attention and norms trace cannot hold exactly; it knows "
                f"glassmoe's own decoders, {', '.join(FAMILIES)}"
            )
        self.own = own
        self.layers = _by_block(subject, coders, coder)
        self.model: Any = subject.model
        if not own:
            self.model = imported_model(subject.model.config, subject.model.state_dict(), replaced)
            self.model.requires_grad_(False)
        word = layer_kind(subject.model)
        for number, layer in replaced.items():
            self.layers.setdefault(number, (f"{number}/{word}", layer))

    def trace(
        self,
        prompt: str | Sequence[int],
        *,
        target: str | int | None = None,
        against: str | int | None = None,
        features: int = FEATURES,
        check: int = 0,
        holds: Sequence[frozenset[Pattern]] = (),
        details: bool = True,
        tell: Callable[[int], None] = lambda _: None,
    ) -> Graph:
        """The graph of one prompt.

        `target`: the token whose logit is explained, as text or id (default: the likeliest ones). `against`: the token
        whose logit is subtracted. `features`: whose rows are made, at most. `check`: the number of features that are
        switched off and doubled in the model; `holds`: once more with each of these sets of patterns held. `details`:
        whether edges say which head moves them, and routes and looks are computed. `tell`: is called with the number of
        features traced so far. ValueError for a prompt or token that cannot be traced.
        """
        began = time.perf_counter()
        kind = self.subject.kind()
        asked = read_prompt(self.subject, kind, prompt)
        head = self.model.lm_head.weight
        frozen = FrozenModel(self.model, torch.tensor(asked.ids, device=head.device), self.layers, self.own)
        chosen = choose_targets(kind, frozen.logits_V, target, against)
        targets_KD = (chosen.readout_KV.to(head.device, head.dtype)) @ head
        weights_K = np.array(chosen.probabilities)
        weights_K = weights_K / weights_K.sum() if weights_K.sum() > 0 else np.full(len(weights_K), 1 / len(weights_K))
        rows = RowMaker(frozen)
        expansion = Expansion(rows, targets_KD, weights_K, features, tell)
        assembly = Assembly(frozen, rows, expansion, asked, chosen, Spelling(kind))
        graph = assembly.graph(self._names(frozen))
        if details:
            graph = detailed(assembly, graph, targets_KD)
        if check:
            features_to_change = assembly.top_features(graph, check)
            logit = assembly.rows.of_logits(targets_KD[:1])
            readout_V = chosen.readout_KV[0].to(head.device)
            graph = replace(graph, check=act(frozen, logit, readout_V, features_to_change, holds))
        return replace(
            graph,
            model=self.subject.name,
            domain=kind.domain,
            held=self._held(frozen),
            seconds=time.perf_counter() - began,
        )

    def patterns(self) -> tuple[Pattern, ...]:
        """The patterns that a graph of this model holds."""
        own = enumerate(self.model.feed_forwards() if self.own else ())
        layers = {**dict(own), **{number: layer for number, (_, layer) in self.layers.items()}}
        mixtures = any(isinstance(layer, MoE) for layer in layers.values())
        return PATTERNS if mixtures else ("attention", "norms", "units")

    def _names(self, frozen: FrozenModel) -> list[tuple[str, str]]:
        """Name and kind of what is traced in each block; empty where all is error."""
        word = layer_kind(self.subject.model) or ""
        names = []
        for block in frozen.blocks:
            name, layer = self.layers.get(block.number, (f"{block.number}/{word}" if self.own else "", None))
            own = word if name else ""
            names.append((name, layer.config.kind if isinstance(layer, Coder) else own))
        return names

    def _held(self, frozen: FrozenModel) -> dict[str, float] | None:
        shares = {
            self.layers[block.number][0]: decided_by_context(block.layer, block.read_SD)
            for block in frozen.blocks
            if isinstance(block.layer, MxD)
        }
        return shares or None


def _by_block(subject: Subject, coders: Mapping[str, tuple[FeedForward, Place]], wanted: str | None) -> Layers:
    """Block -> the name and module of the coder that stands for its MLP."""
    places = {subject.place(number, "mlp").module: number for number in range(subject.layers)}
    layers: Layers = {}
    if wanted is not None:
        if not coders:
            raise ValueError(f"coder is {wanted!r}, and {subject.name} was opened without coders; leave coder out")
        require_coder(coders, wanted)
    for name, (coder, place) in coders.items():
        if not is_meant(name, wanted):
            continue
        if not isinstance(coder, Coder) or not coder.stands_for_mlp or place.module not in places:
            raise ValueError(
                f"{name} cannot be traced: trace needs coders that read the input of a block's MLP and rebuild its "
                f"output (transcoder, skip-transcoder, mxd, moe-x, switch); fit them with glassmoe decompose"
            )
        number = places[place.module]
        if number in layers:
            raise ValueError(
                f"the coders {layers[number][0]} and {name} stand for the same MLP; choose one kind with coder, such "
                f"as {short_name(name)}"
            )
        layers[number] = name, coder
    return layers
