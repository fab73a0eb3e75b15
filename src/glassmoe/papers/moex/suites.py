"""The tables and figures of the paper as lists of rows: how each row is trained, and what is measured.

A row is the suite's recipe with a few changed fields of the model. Every row sees the same T tokens. An upcycled row
sees half of them in its dense source, which is as wide as one expert, and half as a mixture. (MoE-X Table 4 compares
starts; equal tokens are this project's definition.) Rows of unequal tokens are shown apart. A name means the same
configuration in every suite, so suites share runs.

`ROWS` is open: `glassmoe reproduce table1 --rows NAME` also trains and measures a row that another package registers
there, or a layer that it registers in `FEED_FORWARD`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from glassmoe.config import ModelConfig
from glassmoe.registry import LAYER_REGISTRY, Registry

from .paper import BASES
from .pretrained import SUITE as UPCYCLED
from .pretrained import layer_names

RECIPES = {
    ("cpu", "characters"): "chess-small",
    ("cpu", "moves"): "chess-moves",
    ("gpu", "characters"): "chess-paper",
    ("cpu", "text"): "text-small",
    ("gpu", "text"): "fineweb-s",
}
"""(scale, what a token is) -> recipe."""

CURVE_POINTS = 4
"""Points of a run at which the boards measure is taken, including the last."""
ONE_STEP = 1e-9
"""Share of T that is rounded up to one step."""
SHORT = 0.25
"""Share of T for the rows of figures with many sizes."""


@dataclass(frozen=True)
class TableRow:
    """How one row of a table is trained."""

    model: dict[str, Any] = field(default_factory=dict)
    """Fields of the recipe's model that differ, such as {"ffn": "moe-x", "router": "learned"}."""
    share: float = 1.0
    """Share of T, the tokens of the table, in this run alone; 0 for a pretrained model as it is."""
    source: str | None = None
    """Name of the row that it starts from; a mixture is upcycled from a dense source."""
    coder: str | None = None
    """Kind of sparse autoencoder to fit to `source`, or to the pretrained model; None: train a model."""
    apart: bool = False
    """Whether the row is shown below the table, because it does not see T tokens."""
    ahead_of: tuple[str, ...] | None = None
    """Rows with which the claims compare it; None: the paper's claims, or GELU and Switch for rows that the suite does
    not declare."""
    name: str = ""
    """Set to the key in `ROWS`."""
    listed: bool = True
    """Whether the table shows it; False if other rows only start from it. Set by the suite."""


RowMaker = TableRow | Callable[[ModelConfig], TableRow]


def _source(ffn: str, share: float = 0.5) -> RowMaker:
    """A dense model of one expert's width, to start others from."""
    return lambda base: TableRow({"ffn": ffn, "active_width": base.active_width // base.experts_per_token}, share)


def _coder(kind: str) -> TableRow:
    """A sparse autoencoder on the dense GELU model."""
    return TableRow({"ffn": "gelu"}, source="gelu", coder=kind)


def _short(**model: Any) -> TableRow:
    return TableRow(model, share=SHORT)


PLAIN = ("gelu", "relu", "geglu", "solu", "monet-hd", "monet-vd", "peer", "switch", "moe-x")
"""Rows whose name is that of their feed-forward layer."""
CODERS_OF_GELU = ("topk", "l1", "p-anneal", "gated")

ROWS: dict[str, RowMaker] = {
    **{name: TableRow({"ffn": name}) for name in PLAIN},
    "relu-source": _source("relu"),
    "gelu-source": _source("gelu"),
    "relu-source-full": _source("relu", 1.0),
    "switch-upcycled": TableRow({"ffn": "switch"}, share=0.5, source="gelu-source"),
    "moe-x-upcycled": TableRow({"ffn": "moe-x"}, share=0.5, source="relu-source"),
    "moe-x-upcycled-full": TableRow({"ffn": "moe-x"}, source="relu-source-full", apart=True),
    "relu-continued": lambda base: replace(make("relu-source", base), source="relu-source"),
    "switch-sparsity-router": TableRow({"ffn": "switch", "router": "sparsity"}),
    "moe-x-learned-router": TableRow({"ffn": "moe-x", "router": "learned"}),
    "moe-x-frozen-router": TableRow({"ffn": "moe-x", "router_gradient": False}),
    "moe-x-no-balance": TableRow({"ffn": "moe-x", "balance": 0.0}),
    **{f"sae-{kind}": _coder(kind) for kind in CODERS_OF_GELU},
    # What an autoencoder finds in a model that knows nothing but the moves so far: the control of `sae-topk`.
    "gelu-one-step": TableRow({"ffn": "gelu"}, share=ONE_STEP, apart=True),
    "sae-topk-one-step": TableRow({"ffn": "gelu"}, source="gelu-one-step", coder="topk"),
    "sae-topk-short": TableRow({"ffn": "gelu"}, share=SHORT, source="gelu-short", coder="topk"),
    # Of recipes that spread tokens by a stronger balance loss than others.
    **{f"{ffn}-weak-balance": TableRow({"ffn": ffn, "balance": 0.01}) for ffn in ("switch", "moe-x")},
    # Loss ablations: one change of MoE-X at a time.
    **{f"{ffn}-short": _short(ffn=ffn) for ffn in ("gelu", "relu", "switch", "moe-x")},
    "moe-x-learned-router-short": _short(ffn="moe-x", router="learned"),
    "moe-x-no-balance-short": _short(ffn="moe-x", balance=0.0),
    "moe-x-frozen-router-short": _short(ffn="moe-x", router_gradient=False),
    "moe-x-every-expert-short": lambda base: _short(ffn="moe-x", num_experts=base.experts_per_token),
}
"""Name -> how the row is trained: a `TableRow`, or a function of the recipe's model that returns one. Add your own row
by `ROWS["my-row"] = TableRow({"ffn": "moe-x", "num_experts": 16})`, or by an entry point of the group
`glassmoe.rows`."""
ROW_REGISTRY = Registry("row", "glassmoe.rows", __name__, "ROWS", tuple(ROWS))


def make(name: str, base: ModelConfig) -> TableRow:
    """The row `name` for a recipe's model: from `ROWS`, from an installed entry point, or with the feed-forward layer
    of that name. ValueError for an unknown name."""
    if name in ROW_REGISTRY.names():
        maker: RowMaker = ROW_REGISTRY.look_up(ROWS, name)
        return replace(maker if isinstance(maker, TableRow) else maker(base), name=name)
    layers = LAYER_REGISTRY.names()
    if name in layers:
        return TableRow({"ffn": name}, name=name)
    known = list(dict.fromkeys([*ROW_REGISTRY.names(), *layers]))
    close = difflib.get_close_matches(name, known, n=1)
    raise ValueError(
        f"there is no row {name!r}; {f'did you mean {close[0]}? ' if close else ''}Rows: {', '.join(known)}. "
        f"Add a row of your own first: glassmoe.ROWS[{name!r}] = ..., or glassmoe.FEED_FORWARD[{name!r}] = ..."
    )


@dataclass(frozen=True)
class Suite:
    """A table or figure."""

    about: str
    """What it compares."""
    names: tuple[str, ...] = ()
    """Its rows, names of `ROWS`."""
    measures: tuple[str, ...] = ()
    """Measures besides the boards and the loss: routing, encoder_map, board_probes, legal_moves."""
    of_text: bool = False
    """Whether rows read text. Then perplexity on other texts replaces the boards measure."""
    sized: Callable[[ModelConfig], list[TableRow]] = lambda _: []
    """Rows whose names follow the sizes of the recipe's model."""

    def rows(self, base: ModelConfig, names: Sequence[str] | None = None) -> list[TableRow]:
        """The declared rows, or the rows `names`, which may include others of `ROWS`. Their sources come first; a
        source that is not itself chosen is not listed. ValueError for an unknown name."""
        sized = {row.name: row for row in self.sized(base)}
        declared = [*sized, *self.names]
        chosen = declared if names is None else list(names)
        rows: dict[str, TableRow] = {}
        queue = list(chosen)
        for name in queue:
            if name not in rows:
                row = sized[name] if name in sized else make(name, base)
                extra = name not in declared and row.ahead_of is None
                listed = name in chosen or name in declared
                rows[name] = replace(row, listed=listed, ahead_of=BASES if extra else row.ahead_of)
                queue += [row.source] if row.source is not None else []
        place = {name: at for at, name in enumerate(dict.fromkeys([*declared, *chosen]))}
        ordered: dict[str, TableRow] = {}

        def add(row: TableRow) -> None:
            if row.source is not None and row.source not in ordered:
                add(rows[row.source])
            ordered[row.name] = row

        for row in sorted(rows.values(), key=lambda row: (row.listed, place.get(row.name, 0))):
            if row.name not in ordered:
                add(row)
        return list(ordered.values())


def _widths(base: ModelConfig) -> list[TableRow]:
    return [
        _named(f"relu-d{width}-x{times}", ffn="relu", width=width, active_width=width * times)
        for width in (base.width // 2, base.width)
        for times in (1, 2, 4, 8, 16)
    ]


def _sparsities(base: ModelConfig) -> list[TableRow]:
    ks = [base.active_width // parts for parts in (256, 128, 64, 32, 16, 8, 4, 2)]
    return [_named(f"relu-topk-{k}", ffn="relu-topk", options={"k": k}) for k in ks if k >= 1]


def _sizes(base: ModelConfig) -> list[TableRow]:
    return [
        _named(f"{ffn}-d{width}", ffn=ffn, width=width, active_width=base.active_width * width // base.width)
        for ffn in ("gelu", "switch", "moe-x")
        for width in (base.width // 2, base.width * 3 // 4, base.width)
    ]


def _named(name: str, **model: Any) -> TableRow:
    return replace(_short(**model), name=name)


def _replacing(base: ModelConfig) -> list[TableRow]:
    same, relu = layer_names(base)
    return [
        TableRow({"ffn": same}, share=0, name="source"),
        TableRow({"ffn": relu}, name=relu),
        TableRow({"ffn": "switch"}, ahead_of=(relu,), name="switch"),
        TableRow({"ffn": "moe-x"}, ahead_of=(relu, "source-sae"), name="moe-x"),
        TableRow(coder="topk", name="source-sae"),
    ]


ABLATIONS = ("", "-learned-router", "-no-balance", "-frozen-router", "-every-expert")
ROUTED = ("switch", "moe-x", "moe-x-upcycled")

SUITES: dict[str, Suite] = {
    "table1": Suite(
        "every architecture at equal active parameters",
        (*PLAIN, "switch-upcycled", "moe-x-upcycled", "sae-topk"),
        ("board_probes", "legal_moves"),
    ),
    "table2": Suite(
        "language models in perplexity on several texts",
        ("gelu", "switch", "moe-x", "moe-x-upcycled", "sae-topk"),
        of_text=True,
    ),
    "table3": Suite(
        "router and activation of the mixture, one at a time",
        ("switch", "switch-sparsity-router", "moe-x-learned-router", "moe-x"),
    ),
    "table4": Suite(
        "from scratch, continued, upcycled",
        ("gelu", "relu", "moe-x", "relu-continued", "moe-x-upcycled", "moe-x-upcycled-full"),
    ),
    UPCYCLED: Suite("layers of a pretrained model, replaced and trained on", of_text=True, sized=_replacing),
    "figure3": Suite("width against model size, beside a sparse autoencoder", ("sae-topk-short",), sized=_widths),
    "figure4": Suite("coverage against L0: the hidden layer keeps its k greatest units", sized=_sparsities),
    "figure5": Suite("sizes of three architectures", sized=_sizes),
    "figure6": Suite("encoder rows of the experts on a map", ROUTED, ("encoder_map",)),
    "figure9": Suite("router score against the true L0 of every expert", ROUTED, ("routing",)),
    "ablations": Suite(
        "loss ablations of the mixture",
        ("gelu-short", "relu-short", "switch-short", *(f"moe-x{change}-short" for change in ABLATIONS)),
        ("routing",),
    ),
    "calibration": Suite(
        "layers of the dense model and four autoencoders on it", ("gelu", *(f"sae-{kind}" for kind in CODERS_OF_GELU))
    ),
}
