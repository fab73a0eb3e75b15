"""From rows to a graph: sources and targets become nodes, entries of the rows become edges.

Legend: M sources, R rows (K targets, then the expanded features), N nodes, E edges, S positions, L blocks, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glassmoe.text.spelling import Spelling

from .expansion import Expansion
from .frozen import FrozenModel
from .graph import BIAS, ERROR, FEATURE, LOGIT, TOKEN, Edges, Graph, GraphTarget, Nodes
from .heads import Written
from .prompts import Chosen, Prompt
from .pruning import fewest, scores
from .rows import RowMaker, Targets

Int64 = npt.NDArray[np.int64]


class Assembly:
    """The graph of a finished expansion. `source_N`: number of each node among the sources, -1 of logits; `row_N`:
    number of its row, -1 of nodes that are traced no further."""

    def __init__(
        self,
        frozen: FrozenModel,
        rows: RowMaker,
        expansion: Expansion,
        prompt: Prompt,
        chosen: Chosen,
        spelling: Spelling,
    ):
        self.frozen, self.rows, self.expansion = frozen, rows, expansion
        self.prompt, self.chosen, self.spelling = prompt, chosen, spelling
        self.source_N: Int64 = np.zeros(0, dtype=np.int64)
        self.row_N: Int64 = np.zeros(0, dtype=np.int64)

    def graph(self, names: Sequence[tuple[str, str]]) -> Graph:
        """The graph. `names`: name and kind of the layer or coder of each block, empty where there is none."""
        traced = [block for block in self.frozen.blocks if block.active is not None]
        nodes = self._nodes({block.number: place for place, block in enumerate(traced)})
        edges, rest_N = self._edges()
        read_N = self.row_N >= 0
        nodes = Nodes(**{**{name: getattr(nodes, name) for name in Nodes.TYPES}, "rest": np.where(read_N, rest_N, 0)})
        replacement, completeness = scores(nodes, edges)
        expansion = self.expansion
        size_KM = np.abs(expansion.direct_KM)
        direct_M = expansion.weights_K @ (size_KM / np.maximum(size_KM.sum(1, keepdims=True), 1e-30))
        spelling, chosen = self.spelling, self.chosen
        other = None if chosen.against is None else spelling.one(chosen.against)
        values_K = (self.frozen.logits_V.double().cpu() @ chosen.readout_KV.T).tolist()
        return Graph(
            prompt=self.prompt.text,
            tokens=self.prompt.texts,
            token_ids=self.prompt.ids,
            model="",
            layers=len(self.frozen.blocks),
            sources=[names[block.number][0] for block in traced],
            kinds=[names[block.number][1] for block in traced],
            domain=None,
            nodes=nodes,
            edges=edges,
            targets=[
                GraphTarget(token, spelling.one(token), probability, value, chosen.against, other)
                for token, probability, value in zip(chosen.tokens, chosen.probabilities, values_K, strict=True)
            ],
            replacement=replacement,
            completeness=completeness,
            active=self.rows.sources.num_features,
            traced=len(expansion.features),
            nodes_for_80=int(fewest(expansion.influence_M, 0.8).sum()),
            direct_for_80=int(fewest(direct_M, 0.8).sum()),
        )

    def _nodes(self, index: dict[int, int]) -> Nodes:
        """All nodes in order, with `source_N` and `row_N`; `rest` is filled in later."""
        frozen, sources, expansion = self.frozen, self.rows.sources, self.expansion
        length, top = frozen.length, len(frozen.blocks)
        influence_M, targets = expansion.influence_M, len(expansion.weights_K)
        parts: list[dict[str, npt.ArrayLike]] = []

        def add(count: int, **columns: npt.ArrayLike) -> None:
            default: dict[str, npt.ArrayLike] = {
                "position": -1, "source": -1, "feature": -1, "expert": -1, "activation": 1.0, "input": np.nan,
                "rest": 0.0, "number": -1, "row": -1,
            }  # fmt: skip
            parts.append({name: np.broadcast_to(value, (count,)) for name, value in {**default, **columns}.items()})

        number = np.arange(length)
        ids = np.array(self.prompt.ids)
        add(length, kind=TOKEN, layer=-1, position=number, feature=ids, number=number)
        number = np.arange(top + 1)
        add(top + 1, kind=BIAS, layer=number, number=sources.biases + number)
        for block in frozen.blocks:
            active = block.active
            if active is not None:
                begin, end = (sources.features[block.number + side] - sources.first_feature for side in (0, 1))
                mine = np.flatnonzero((expansion.features >= begin) & (expansion.features < end))
                inside = torch.from_numpy(expansion.features[mine] - begin).to(active.position_A.device)

                def column(each: Tensor, at: Tensor = inside) -> npt.NDArray[np.float64]:
                    return each[at].double().cpu().numpy()

                add(
                    len(mine),
                    kind=FEATURE,
                    layer=block.number,
                    position=column(active.position_A),
                    source=index[block.number],
                    feature=column(active.feature_A),
                    expert=column(active.expert_A),
                    activation=column(active.value_A),
                    input=column(active.input_A),
                    number=sources.first_feature + expansion.features[mine],
                    row=targets + mine,
                )
            first_error = sources.errors[block.number]
            if first_error is not None:
                at = np.arange(length)
                add(length, kind=ERROR, layer=block.number, position=at, number=first_error + at)
        values = (frozen.logits_V.double().cpu() @ self.chosen.readout_KV.T).numpy()
        add(
            targets,
            kind=LOGIT,
            layer=top,
            position=length - 1,
            feature=np.array(self.chosen.tokens),
            activation=np.array(self.chosen.probabilities),
            input=values,
            row=np.arange(targets),
        )
        columns = {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}
        # A logit's place in the list of targets decides among logits.
        order = np.lexsort((np.where(columns["kind"] == LOGIT, columns["row"], columns["feature"]), columns["position"],
                            columns["kind"], columns["layer"]))  # fmt: skip
        columns = {name: column[order] for name, column in columns.items()}
        self.source_N = columns.pop("number").astype(np.int64)
        self.row_N = columns.pop("row").astype(np.int64)
        weights = expansion.weights_K[np.clip(self.row_N, 0, targets - 1)]
        influence = np.where(self.source_N < 0, weights, influence_M[np.maximum(self.source_N, 0)])
        return Nodes(**columns, influence=influence)

    def _edges(self) -> tuple[Edges, npt.NDArray[np.float64]]:
        """All edges between nodes, sorted by target; and what each node's row holds besides."""
        kept = self.expansion.rows
        node_M = np.full(self.rows.sources.count, -1, dtype=np.int64)
        node_M[self.source_N[self.source_N >= 0]] = np.flatnonzero(self.source_N >= 0)
        node_R = np.full(len(kept.whole), -1, dtype=np.int64)
        node_R[self.row_N[self.row_N >= 0]] = np.flatnonzero(self.row_N >= 0)
        entries = kept.matrix().tocoo()
        source, target = node_M[entries.col], node_R[entries.row]
        between = source >= 0
        source, target, weight = source[between], target[between], entries.data[between]
        order = np.lexsort((source, target))
        source, target, weight = source[order], target[order], weight[order]
        count = len(self.source_N)
        whole_N = np.zeros(count)
        whole_N[node_R] = kept.whole
        rest_N = whole_N - np.bincount(target, weights=weight.astype(np.float64), minlength=count)
        unknown = np.full(len(weight), -1)
        return Edges(source, target, weight, unknown, unknown, np.full(len(weight), np.nan)), rest_N

    # --- what details need of nodes ---

    def written(self, nodes: Int64) -> Written:
        """What these nodes write: tokens, features and errors."""
        frozen, sources = self.frozen, self.rows.sources
        number = torch.from_numpy(self.source_N[nodes])
        width = frozen.embedded_SD.shape[1]
        vectors_ND = frozen.embedded_SD.new_zeros(len(nodes), width)
        layer_N, position_N = (torch.full((len(nodes),), -1) for _ in range(2))
        tokens = (number < sources.biases).nonzero().squeeze(1)
        position_N[tokens] = number[tokens]
        vectors_ND[tokens] = frozen.embedded_SD[number[tokens]]
        for block in frozen.blocks:
            begin, end = sources.features[block.number], sources.features[block.number + 1]
            mine = ((number >= begin) & (number < end)).nonzero().squeeze(1)
            if block.active is not None and len(mine):
                inside = number[mine] - begin
                layer_N[mine], position_N[mine] = block.number, block.active.position_A.cpu()[inside]
                vectors_ND[mine] = block.active.writes_AD[inside.to(vectors_ND.device)]
            start = sources.errors[block.number]
            if start is not None and block.error_SD is not None:
                mine = ((number >= start) & (number < start + frozen.length)).nonzero().squeeze(1)
                layer_N[mine], position_N[mine] = block.number, number[mine] - start
                vectors_ND[mine] = block.error_SD[(number[mine] - start).to(vectors_ND.device)]
        return Written(layer_N, position_N, vectors_ND)

    def targets(self, nodes: Int64, targets_KD: Tensor) -> Targets:
        """Features and logits as targets, in this order."""
        row = self.row_N[nodes]
        count = len(self.expansion.weights_K)
        logits, features = np.flatnonzero(row < count), np.flatnonzero(row >= count)
        parts = [
            self.rows.of_logits(targets_KD[torch.from_numpy(row[logits]).to(targets_KD.device)]),
            self.rows.of_features(torch.from_numpy(self.expansion.features[row[features] - count])),
        ]
        back = torch.from_numpy(np.argsort(np.concatenate([logits, features])))
        joined = Targets(
            *(
                torch.cat([getattr(part, name) for part in parts])
                for name in ("layer_R", "position_R", "reads_RD", "offset_R")
            )
        )
        return joined.select(back)

    def top_features(self, graph: Graph, count: int) -> list[tuple[int, int, int, str]]:
        """The features of most influence: block, place among its active features, node, name."""
        sources = self.rows.sources
        features = graph.where("feature")
        top = features[np.argsort(-graph.nodes.influence[features], kind="stable")[:count]]
        return [
            (
                int(graph.nodes.layer[node]),
                int(self.source_N[node]) - sources.features[int(graph.nodes.layer[node])],
                int(node),
                graph.name(int(node)),
            )
            for node in top
        ]
