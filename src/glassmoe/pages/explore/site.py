"""`glassmoe explore`: a folder of static pages of every feature and every expert of some layers.

    index.html              the runs side by side
    assets/                 style and scripts, our own
    RUN/READER/index.html   one page a layer: its list of features, a feature (#17), an expert (#expert-3)
    RUN/READER/*.js         its data: meta, list (numbers of all features), words-N (their words, in the list's order),
                            features-N (`SHARD` features each), experts

Pages are opened from disk as well as from a server. A page from disk may not read other files but as scripts, so the
data are scripts that hand one JSON value over; they are loaded when they are needed, and the list shows its first rows
after two of them.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from glassmoe import __version__
from glassmoe.console import bar, say

from .directions import HOW, moved_logits, nearest, read_rows, written_rows
from .experts import experts_of
from .folder import check_folder, made_folder
from .overview import overview
from .records import Recorder, Ties, column, rounded
from .sources import Options, Source, open_sources

HERE = Path(__file__).parent
PIECES = HERE.parent / "templates/pieces.svg"
SHARD, WORDS = 8, 1024
"""Features of a file of records, and of a file of words."""
NEAR, LOGITS, CARDS = 8, 10, 6
FEW = 0.02
"""Part of the tokens on which a feature fires that is about few things."""


def build_site(runs: Sequence[Path], out: Path, options: Options | None = None) -> dict[str, Any]:
    """Write the pages of `runs` to `out` and return what was written: {"site", "layers": [{"run", "reader", "features",
    "silent", "explained", "page"}]}. ValueError for a run without examples, and for a folder that holds anything that
    was not made here."""
    options = options or Options()
    check_folder(out)
    sources = open_sources(runs, options)
    with made_folder(out) as folder:
        (folder / "assets").mkdir()
        for asset in sorted((HERE / "assets").iterdir()):
            if asset.suffix in (".css", ".js"):
                shutil.copyfile(asset, folder / "assets" / asset.name)
        places = folders_of(sources)
        written = [write_layer(source, folder, place, options) for source, place in zip(sources, places, strict=True)]
        page = render("overview.html", root="", **overview(sources, written))
        (folder / "index.html").write_text(page, encoding="utf-8")
    return {"site": str(out / "index.html"), "layers": [{k: v for k, v in w.items() if k != "best"} for w in written]}


def folders_of(sources: Sequence[Source]) -> list[str]:
    """`RUN/READER` of every source, of letters that any file system and server takes as they are."""
    found: list[str] = []
    for source in sources:
        place = "/".join(re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip(".-") or "run" for part in
                         (source.name, source.title.replace("/", "-")))  # fmt: skip
        taken, number = place, 2
        while taken in found or taken.startswith("assets/"):
            taken, number = f"{place}-{number}", number + 1
        found.append(taken)
    return found


def write_layer(source: Source, folder: Path, place: str, options: Options) -> dict[str, Any]:
    """The page of a layer and its data; what `build_site` says of it, with the records of its best features."""
    target = folder / place
    target.mkdir(parents=True)
    boards = _draws_boards(source)
    recorder = Recorder(source, ties_of(source), boards)
    order = order_of(source)[: options.features]
    experts = experts_of(recorder)
    written = {
        "run": source.name,
        "reader": source.title,
        "features": len(order),
        "of": source.store.num_features,
        "silent": sum(int(source.store.counts_F[feature] == 0) for feature in order),
        "explained": sum(bool(source.says(feature)) for feature in order),
        "page": f"{place}/index.html",
    }
    best = _write_records(recorder, order, cards_of(source, order), target)
    _write_list(recorder, order, target)
    data(target, "experts", experts)
    data(target, "meta", _meta(source, written, boards, experts, order))
    title = f"{source.title} of {source.name}"
    (target / "index.html").write_text(
        render("layer.html", root="../" * (place.count("/") + 1), title=title), encoding="utf-8"
    )
    if recorder.broken:
        say(f"{source.name}: {recorder.broken} games hold a move that is not legal; no boards are drawn after it")
    return {**written, "best": best}


def ties_of(source: Source) -> Ties:
    """Nearest features, and the logits that each moves."""
    layer = source.reader.layer
    reads = read_rows(layer)
    writes = written_rows(source.subject, layer, source.reader.place, source.store)
    up, down = (None, None) if writes is None else moved_logits(source.subject, writes, LOGITS)
    return Ties(
        None if reads is None else nearest(reads, NEAR), None if writes is None else nearest(writes, NEAR), up, down
    )


def order_of(source: Source) -> list[int]:
    """The features in the order of the list: the best explained first, then those that tell the board best, then by
    number."""

    def key(feature: int) -> tuple[float, float, int]:
        board = source.board(feature) or {}
        return (-(source.score(feature) or 0), -(board.get("f1") or 0), feature)

    return sorted(range(source.store.num_features), key=key)


def cards_of(source: Source, order: Sequence[int]) -> list[int]:
    """The features that the first page shows: the first of the list, or where nothing is known of those, the strongest
    of what fires on few tokens."""
    if order and (source.says(order[0]) or source.board(order[0])):
        return list(order[:CARDS])
    density_F = source.store.counts_F / source.store.manifest["read_tokens"]
    few = [feature for feature in order if 0 < density_F[feature] < FEW] or list(order)
    return sorted(few, key=lambda feature: (-float(source.store.maxima_F[feature]), feature))[:CARDS]


def _draws_boards(source: Source) -> bool:
    if source.of_text:
        return False
    if find_spec("chess") is None:
        say('no boards are drawn beside games: that needs python-chess, pip install "glassmoe[chess]"')
        return False
    return True


def _write_records(
    recorder: Recorder, order: Sequence[int], cards: Sequence[int], target: Path
) -> list[dict[str, Any]]:
    """`features-N.js`; the records of the features on `cards`."""
    best, chosen, shards = [], set(order), -(-recorder.store.num_features // SHARD)
    with bar(len(order), f"pages of {recorder.source.title}", "feature", lines=True) as progress:
        for shard in range(shards):
            features = [f for f in range(shard * SHARD, (shard + 1) * SHARD) if f in chosen]
            if features:
                records = {feature: recorder.record(feature) for feature in features}
                data(target, f"features-{shard}", records)
                best += [records[feature] for feature in features if feature in cards]
                progress.update(len(features))
    return sorted(best, key=lambda record: cards.index(record["id"]))


def _write_list(recorder: Recorder, order: Sequence[int], target: Path) -> None:
    """`list.js`: columns of numbers in the order of the list; `words-N.js`: what is said, and the strongest token."""
    source, store = recorder.source, recorder.store
    boards = [source.board(feature) for feature in order]
    properties = sorted({str(board["property"]) for board in boards if board})
    number_of = {name: number for number, name in enumerate(properties)}
    data(
        target,
        "list",
        {
            "ids": list(order),
            "density": column(store.counts_F[list(order)] / store.manifest["read_tokens"]),
            "max": column(store.maxima_F[list(order)]),
            "score": column([source.score(feature) for feature in order]),
            "f1": column([(board or {}).get("f1") for board in boards]),
            "board": [number_of[str(board["property"])] if board else -1 for board in boards],
            "properties": properties,
        },
    )
    for number, begin in enumerate(range(0, len(order), WORDS)):
        some = order[begin : begin + WORDS]
        said = [source.says(feature) for feature in some]
        words = {
            "said": [text[:200] for text in said],
            "peaks": [recorder.peak(feature) for feature in some],
        }
        data(target, f"words-{number}", words)


def _meta(
    source: Source,
    written: dict[str, Any],
    boards: bool,
    experts: list[dict[str, Any]],
    order: Sequence[int],
) -> dict[str, Any]:
    """What is true of the whole layer. `shown`: the features that are, where some are not."""
    store, layer = source.store, source.reader.layer
    return {
        **written,
        "shown": sorted(order) if len(order) < store.num_features else None,
        "shard": SHARD,
        "words": WORDS,
        "experts": len(experts),
        "routes": any(expert["load"] is not None for expert in experts),
        "features_of_expert": store.num_features // source.experts if source.experts else 0,
        "tokens": int(store.manifest["read_tokens"]),
        "unit": source.kind.one,
        "separator": source.kind.separator,
        "text": source.of_text,
        "boards": boards,
        "edges": [rounded(edge) for edge in store.edges_B],
        "writes": layer.writes,
        "how": HOW[layer.writes],
        "scored": any(source.score(feature) is not None for feature in source.explained),
        "tells": bool(source.tracked) or any(source.board(feature) for feature in source.explained),
        "version": __version__,
    }


def data(target: Path, name: str, value: Any) -> None:
    """One value as a script that hands it to the page."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    (target / f"{name}.js").write_text(f'glass.got("{name}",{text});\n', encoding="utf-8", errors="backslashreplace")


def render(template: str, **values: Any) -> str:
    """A page from its template; whatever is put into one is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The pages' policy takes no inline style.
    pieces = Markup(PIECES.read_text(encoding="utf-8").replace('style="position:absolute"', 'class="pieces"'))
    return environment.get_template(template).render(version=__version__, pieces=pieces, **values)
