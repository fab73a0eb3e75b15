"""The paper's tables and figures as declared lists: which rows, made from which recipe, and what is measured of them.

A row is the suite's recipe with a few fields of the model changed. Every row sees the same T tokens: an upcycled row
half of them in its dense source and half as a mixture, a source whose own width is an expert's (MoE-X Table 4 compares
starts; equal tokens are this project's definition). Rows of unequal tokens stand apart. A name means one configuration
in every suite, so suites share runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from glassmoe.config import ModelConfig

RECIPES = {
    ("cpu", "characters"): "chess-small",
    ("cpu", "moves"): "chess-moves",
    ("gpu", "characters"): "chess-paper",
    ("cpu", "text"): "text-small",
    ("gpu", "text"): "fineweb-s",
}
"""(scale, what a token is) -> recipe."""

CURVE_POINTS = 4
"""At how many points of a run its board scores are taken, the last among them."""


@dataclass(frozen=True)
class Row:
    """One line of a table.

    `model`: fields of the recipe's model that differ. `share`: of T, the tokens that this run itself sees. `source`:
    the row it starts from, upcycled where that is dense and this is not. `coder`: a sparse autoencoder of this kind is
    fitted to the `source` instead of training a model. `listed`: whether the table shows it, or it is only needed.
    `apart`: shown below the table, because its tokens are not T.
    """

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0
    source: str | None = None
    coder: str | None = None
    listed: bool = True
    apart: bool = False


@dataclass(frozen=True)
class Suite:
    """A table or figure. `rows`: from the recipe's model to the rows, sources before what starts from them.
    `measures`: what is measured besides the boards and the loss: `routing`, `encoder_map`. `of_text`: rows read text,
    and in place of boards their perplexity is measured on texts that they did not train on."""

    about: str
    rows: Callable[[ModelConfig], list[Row]]
    measures: tuple[str, ...] = ()
    of_text: bool = False


def _plain(*names: str) -> list[Row]:
    """Rows whose name is that of their feed-forward layer."""
    return [Row(name, {"ffn": name}) for name in names]


def _source(base: ModelConfig, ffn: str, full: bool = False) -> Row:
    """A dense model of one expert's width, to start others from: half the tokens, or all."""
    model = {"ffn": ffn, "active_width": base.active_width // base.experts_per_token}
    return Row(f"{ffn}-source{'-full' if full else ''}", model, share=1.0 if full else 0.5, listed=False)


def _upcycled(ffn: str, source: str) -> Row:
    return Row(f"{ffn}-upcycled", {"ffn": ffn}, share=0.5, source=source)


def _coder(kind: str) -> Row:
    """A sparse autoencoder on the dense GELU model."""
    return Row(f"sae-{kind}", {"ffn": "gelu"}, source="gelu", coder=kind)


def _table1(base: ModelConfig) -> list[Row]:
    sources = [_source(base, "relu"), _source(base, "gelu")]
    rows = _plain("gelu", "relu", "geglu", "solu", "monet-hd", "monet-vd", "peer", "switch", "moe-x")
    upcycled = [_upcycled("switch", "gelu-source"), _upcycled("moe-x", "relu-source")]
    return [*sources, *rows, *upcycled, _coder("topk")]


def _table2(base: ModelConfig) -> list[Row]:
    upcycled = _upcycled("moe-x", "relu-source")
    return [_source(base, "relu"), *_plain("gelu", "switch", "moe-x"), upcycled, _coder("topk")]


def _table3(_: ModelConfig) -> list[Row]:
    extra = [
        Row("switch-sparsity-router", {"ffn": "switch", "router": "sparsity"}),
        Row("moe-x-learned-router", {"ffn": "moe-x", "router": "learned"}),
    ]
    return [*_plain("switch"), *extra, *_plain("moe-x")]


def _table4(base: ModelConfig) -> list[Row]:
    narrow = base.active_width // base.experts_per_token
    continued = Row("relu-continued", {"ffn": "relu", "active_width": narrow}, share=0.5, source="relu-source")
    full = Row("moe-x-upcycled-full", {"ffn": "moe-x"}, source="relu-source-full", apart=True)
    return [
        _source(base, "relu"),
        *_plain("gelu", "relu", "moe-x"),
        continued,
        _upcycled("moe-x", "relu-source"),
        _source(base, "relu", full=True),
        full,
    ]


SHORT = 0.25
"""Share of T that rows of the figures with many sizes see."""


def _figure3(base: ModelConfig) -> list[Row]:
    rows = [
        Row(f"relu-d{width}-x{times}", {"ffn": "relu", "width": width, "active_width": width * times}, share=SHORT)
        for width in (base.width // 2, base.width)
        for times in (1, 2, 4, 8, 16)
    ]
    dense = Row("gelu-short", {"ffn": "gelu"}, share=SHORT, listed=False)
    return [*rows, dense, Row("sae-topk-short", {"ffn": "gelu"}, share=SHORT, source="gelu-short", coder="topk")]


def _figure4(base: ModelConfig) -> list[Row]:
    ks = [base.active_width // parts for parts in (256, 128, 64, 32, 16, 8, 4, 2)]
    return [Row(f"relu-topk-{k}", {"ffn": "relu-topk", "options": {"k": k}}, share=SHORT) for k in ks if k >= 1]


def _figure5(base: ModelConfig) -> list[Row]:
    return [
        Row(
            f"{ffn}-d{width}",
            {"ffn": ffn, "width": width, "active_width": base.active_width * width // base.width},
            share=SHORT,
        )
        for ffn in ("gelu", "switch", "moe-x")
        for width in (base.width // 2, base.width * 3 // 4, base.width)
    ]


def _ablations(base: ModelConfig) -> list[Row]:
    """What makes the mixture's loss differ from the dense layer's, one change of MoE-X at a time."""

    def short(name: str, **model: Any) -> Row:
        return Row(f"{name}-short", model, share=SHORT)

    return [
        short("gelu", ffn="gelu"),
        short("relu", ffn="relu"),
        short("switch", ffn="switch"),
        short("moe-x", ffn="moe-x"),
        short("moe-x-learned-router", ffn="moe-x", router="learned"),
        short("moe-x-no-balance", ffn="moe-x", balance=0.0),
        short("moe-x-frozen-router", ffn="moe-x", router_gradient=False),
        short("moe-x-every-expert", ffn="moe-x", num_experts=base.experts_per_token),
    ]


def _calibration(_: ModelConfig) -> list[Row]:
    return [*_plain("gelu"), *(_coder(kind) for kind in ("topk", "l1", "p-anneal", "gated"))]


def _routed(base: ModelConfig) -> list[Row]:
    return [_source(base, "relu"), *_plain("switch", "moe-x"), _upcycled("moe-x", "relu-source")]


SUITES: dict[str, Suite] = {
    "table1": Suite("every architecture at equal active parameters", _table1),
    "table2": Suite("language models in perplexity on several texts", _table2, of_text=True),
    "table3": Suite("router and activation of the mixture, one at a time", _table3),
    "table4": Suite("from scratch, continued, upcycled", _table4),
    "figure3": Suite("width against model size, beside a sparse autoencoder", _figure3),
    "figure4": Suite("coverage against L0: the hidden layer keeps its k greatest units", _figure4),
    "figure5": Suite("sizes of three architectures", _figure5),
    "figure6": Suite("encoder rows of the experts on a map", _routed, ("encoder_map",)),
    "figure9": Suite("router score against the true L0 of every expert", _routed, ("routing",)),
    "ablations": Suite("what the mixture's loss hangs on", _ablations, ("routing",)),
    "calibration": Suite("layers of the dense model and four autoencoders on it", _calibration),
}
