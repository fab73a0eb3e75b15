"""`glassmoe explore`: a folder of static pages of every feature and every expert of some layers.

    index.html              the runs side by side
    assets/                 style sheets and scripts of the pages
    RUN/LAYER/index.html    one page a layer: its list of features, a feature (#17), an expert (#expert-3)
    RUN/LAYER/*.js          its data: meta, list (numbers of all features), words-N (their words, in the list's order),
                            features-N (`SHARD` features each), experts, prompts, live (whether a server reads texts)

Pages open from disk as well as from a server. A page on disk may read other files only as scripts, so every data file
is a script that hands over one JSON value. Data files are loaded when they are needed; the list shows its first rows
after two of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from glassmoe import __version__
from glassmoe.console import bar, say
from glassmoe.pages.folder import EXPLORE, new_folder
from glassmoe.pages.html import SHARED_STYLES, render, style_sheet
from glassmoe.results import Result

from .directions import HOW, moved_logits, nearest, read_rows, written_rows
from .experts import ExpertRecord, experts_of
from .explored import ExploredLayer, folders_of, open_explored
from .overview import overview
from .prompts import prompt_record
from .records import FeatureRecord, Recorder, Relations, column, rounded
from .results import LayerMeta, SiteLayer, SiteResult

ASSETS = Path(__file__).parent / "assets"
SHARD, WORDS = 8, 1024
"""Features in a file of records, and in a file of words."""
NEAR, LOGITS, CARDS = 8, 10, 6
FEW = 0.02
"""A feature that fires on a smaller share of the tokens is about few things."""


def build_site(
    runs: str | Path | Sequence[str | Path],
    out: str | Path = "site",
    *,
    layers: Sequence[int] | None = None,
    features: int | None = None,
    prompts: Sequence[str] = (),
    source: str | Path | None = None,
    device: str = "auto",
) -> SiteResult:
    """Write pages of every feature and every expert of some runs to the folder `out`.

    `layers`: only these (default: all that have examples). `features`: the first so many of each list (default: all).
    `prompts`: texts whose strongest features a page of each layer shows.
    `source`: current path of the coders' model, if it moved. ValueError for a run without examples, and for a folder
    that holds anything else.
    """
    with new_folder(Path(out), EXPLORE) as folder:
        explored = open_explored(runs, layers, source, device)
        assets = folder / "assets"
        assets.mkdir()
        for asset in sorted(ASSETS.iterdir()):
            if asset.suffix in (".css", ".js"):
                shutil.copyfile(asset, assets / asset.name)
        (assets / "drawings.css").write_text(style_sheet(*SHARED_STYLES, themes=True), encoding="utf-8")
        written, best = [], []
        for layer, place in zip(explored, folders_of(explored), strict=True):
            site_layer, records = write_layer(layer, folder, place, features, prompts)
            written.append(site_layer)
            best.append(records)
        page = render("overview.html", root="", **overview(explored, written, best))
        (folder / "index.html").write_text(page, encoding="utf-8")
    return SiteResult(str(Path(out) / "index.html"), written)


def write_layer(
    layer: ExploredLayer, folder: Path, place: str, features: int | None, prompts: Sequence[str] = ()
) -> tuple[SiteLayer, list[FeatureRecord]]:
    """Write the page of a layer and its data; return what it holds, and the records of its best features."""
    target = folder / place
    target.mkdir(parents=True)
    boards = not layer.of_text and draws_boards()
    recorder = Recorder(layer, relations_of(layer), boards)
    order = order_of(layer)[:features]
    experts = experts_of(recorder)
    site_layer = SiteLayer(
        run=layer.name,
        reader=layer.title,
        features=len(order),
        of=layer.store.num_features,
        silent=sum(int(layer.store.counts_F[feature] == 0) for feature in order),
        explained=sum(bool(layer.explanation(feature)) for feature in order),
        page=f"{place}/index.html",
    )
    best = _write_records(recorder, order, cards_of(layer, order), target)
    _write_list(recorder, order, target)
    write_data(target, "experts", experts)
    write_data(target, "prompts", [prompt_record(recorder, prompt) for prompt in prompts])
    write_data(target, "live", False)  # `explore --serve` says true
    write_data(target, "graphs", [])  # `trace --site` adds its graphs
    write_data(target, "meta", _meta(layer, site_layer, boards, experts, order, len(prompts)))
    title = f"{layer.title} of {layer.name}"
    page = render("layer.html", root="../" * (place.count("/") + 1), title=title)
    (target / "index.html").write_text(page, encoding="utf-8")
    if recorder.broken:
        say(f"{layer.name}: {recorder.broken} games hold an illegal move; no boards are drawn after it")
    return site_layer, best


def relations_of(layer: ExploredLayer) -> Relations:
    """Nearest features, and the logits that each feature moves."""
    reads = read_rows(layer.reader.layer)
    writes = written_rows(layer.subject, layer.reader.layer, layer.reader.place, layer.store)
    up, down = (None, None) if writes is None else moved_logits(layer.subject, writes, LOGITS, layer.store)
    return Relations(
        None if reads is None else nearest(reads, NEAR), None if writes is None else nearest(writes, NEAR), up, down
    )


def order_of(layer: ExploredLayer) -> list[int]:
    """The features in the order of the list: the best explained first, then those with the best board property, then
    by number."""

    def key(feature: int) -> tuple[float, float, int]:
        board = layer.board(feature)
        return (-(layer.score(feature) or 0), -((board and board.f1) or 0), feature)

    return sorted(range(layer.store.num_features), key=key)


def cards_of(layer: ExploredLayer, order: Sequence[int]) -> list[int]:
    """The features on the first page: the first of the list, or where nothing is known of these, the strongest of
    those that fire on few tokens."""
    if order and (layer.explanation(order[0]) or layer.board(order[0])):
        return list(order[:CARDS])
    density_F = layer.store.counts_F / layer.store.manifest["read_tokens"]
    few = [feature for feature in order if 0 < density_F[feature] < FEW] or list(order)
    return sorted(few, key=lambda feature: (-float(layer.store.maxima_F[feature]), feature))[:CARDS]


def draws_boards() -> bool:
    """Whether positions of games can be drawn."""
    if find_spec("chess") is None:
        say('no boards are drawn beside games: that needs python-chess, pip install "glassmoe[chess]"')
        return False
    return True


def _write_records(recorder: Recorder, order: Sequence[int], cards: Sequence[int], target: Path) -> list[FeatureRecord]:
    """Write `features-N.js`; return the records of the features on `cards`."""
    best, chosen, shards = [], set(order), -(-recorder.store.num_features // SHARD)
    with bar(len(order), f"pages of {recorder.layer.title}", "feature", lines=True) as progress:
        for shard in range(shards):
            features = [f for f in range(shard * SHARD, (shard + 1) * SHARD) if f in chosen]
            if features:
                records = {feature: recorder.record(feature) for feature in features}
                write_data(target, f"features-{shard}", records)
                best += [records[feature] for feature in features if feature in cards]
                progress.update(len(features))
    return sorted(best, key=lambda record: cards.index(record.id))


def _write_list(recorder: Recorder, order: Sequence[int], target: Path) -> None:
    """Write `list.js`, columns of numbers in the order of the list, and `words-N.js`, explanations and strongest
    tokens."""
    layer, store = recorder.layer, recorder.store
    boards = [layer.board(feature) for feature in order]
    properties = sorted({board.property for board in boards if board})
    number_of = {name: number for number, name in enumerate(properties)}
    columns = {
        "ids": list(order),
        "density": column(store.counts_F[list(order)] / store.manifest["read_tokens"]),
        "max": column(store.maxima_F[list(order)]),
        "score": column([layer.score(feature) for feature in order]),
        "f1": column([board.f1 if board else None for board in boards]),
        "board": [number_of[board.property] if board else -1 for board in boards],
        "properties": properties,
    }
    write_data(target, "list", columns)
    for number, begin in enumerate(range(0, len(order), WORDS)):
        some = order[begin : begin + WORDS]
        words = {
            "said": [layer.explanation(feature)[:200] for feature in some],
            "peaks": [recorder.peak(feature) for feature in some],
            "tops": [recorder.strongest(feature) for feature in some],
        }
        write_data(target, f"words-{number}", words)


def _meta(
    layer: ExploredLayer,
    site_layer: SiteLayer,
    boards: bool,
    experts: list[ExpertRecord],
    order: Sequence[int],
    prompts: int,
) -> LayerMeta:
    store, writes = layer.store, layer.reader.layer.writes
    return LayerMeta(
        **vars(site_layer),
        shown=sorted(order) if len(order) < store.num_features else None,
        shard=SHARD,
        words=WORDS,
        experts=len(experts),
        prompts=prompts,
        routes=any(expert.load is not None for expert in experts),
        features_of_expert=store.num_features // layer.experts if layer.experts else 0,
        tokens=int(store.manifest["read_tokens"]),
        unit=layer.kind.one,
        separator=layer.kind.separator,
        text=layer.of_text,
        boards=boards,
        edges=[rounded(edge) for edge in store.edges_B],
        writes=writes,
        how=f"{HOW[writes]} Tokens that the examples' text never has are left out.",
        scored=any(layer.score(feature) is not None for feature in layer.explained),
        tells=bool(layer.tracked) or any(layer.board(feature) for feature in layer.explained),
        version=__version__,
    )


def write_data(target: Path, name: str, value: Any) -> None:
    """Write one value as a script that hands it to the page."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_fields)
    (target / f"{name}.js").write_text(f'glass.got("{name}",{text});\n', encoding="utf-8", errors="backslashreplace")


def _fields(record: Result) -> dict[str, Any]:
    """The fields of a record as `to_dict` has them, but not those of the records within: json asks for these itself,
    which is faster than copying every token."""
    pairs = ((field, getattr(record, field.name)) for field in fields(record))
    return {field.name: value for field, value in pairs if value is not None or not field.metadata.get("omit_none")}
