"""Results of a suite: NAME.json for programs, NAME.md for people, the paper's numbers beside ours; the second is made
from the first.

The JSON: `suite`, `scale`, `recipe`, `command`, `commit`, `data_sha256`, `hardware`; `token` (`character`, `move` or
`token`); `texts`, of a suite of text, what was read (`text_tables.py` has its rows);
`names`, the declared order of the rows; `figures`, drawings of them; `rows`, one for each name and seed; `failed`
(`name`, `seed`, `reason`); `notes`, paragraphs that are shown, those that somebody added included; `order`, what the
rows say about the paper's claims (`claims.order`).

A row: `name`, `seed`, `tokens` and `flops` (those of the source that it started from included), `own_tokens`, the sizes
`active_parameters`, `active_ratio` (to a dense GELU model of the same widths), `total_parameters`; `model`, what its
configuration has of its own; `learning_rate`, the peak of its matrices' (files made before it was kept lack it);
`curve` of `[tokens, validation loss]` and `board_curve` of `[tokens, coverage, held-out coverage, reconstruction,
layer]`, whose tokens are the run's own, without the source's; measures `ppl`, `boards`, `routing`, `encoder_map`,
`splice`, as the functions that measure them return them; `start`, the receipt of a run that began from another;
`apart`, true where the row saw other tokens than the rest and is shown below the table.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from glassmoe.atomic import alone_in, write_text
from glassmoe.measure.intervals import interval
from glassmoe.measure.results import layers_table, read_results
from glassmoe.measure.tables import table

from . import text_tables
from .claims import LOSS_MARGIN, best_layer, by_name, differences, measures_of, order, value
from .paper import PUBLISHED_LAYERS, ROUTER_CORRELATION, published

FACTS = ("suite", "scale", "recipe", "data_sha256")
"""What all rows of a file share."""
HEADER = (*FACTS, "hardware", "command", "commit")
CURVE_POINTS = 8
"""Points of a curve that the page shows, at most."""

Results = dict[str, Any]
Row = dict[str, Any]


def save(path: Path, results: Results) -> Results:
    """Add rows to the results file `path` (NAME, without ending) and write its page; returns what the file now holds.

    Rows are one for each name and seed. A row that comes again keeps the measures that it does not bring, as long as
    its model and tokens are the same; a failure is dropped once its row is there. ValueError when the file holds
    results of another suite, scale, recipe or games, or is not a results file. Rows may come from several machines,
    and from several commands at once.
    """
    with alone_in(path.parent):
        return _save(path, results)


def _save(path: Path, results: Results) -> Results:
    json_path = path.with_name(path.name + ".json")
    found = read(json_path) if json_path.exists() else {}
    for fact in FACTS:
        if found and found[fact] != results[fact]:
            raise ValueError(
                f"{json_path} holds results with {fact} {found[fact]}, these have {results[fact]}; rows of one file "
                f"share their {', '.join(FACTS)}: give another name"
            )
    merged = {**found, **results}
    merged["notes"] = list(dict.fromkeys([*found.get("notes", []), *results.get("notes", [])]))
    merged["rows"] = _merge_rows([*found.get("rows", []), *results["rows"]], merged.get("names", []))
    there = {_key(row) for row in merged["rows"]}
    # A row that is only a source never comes, so an earlier failure of one is not kept.
    earlier = [each for each in found.get("failed", []) if each["name"] in merged.get("names", [each["name"]])]
    failed = {_key(each): each for each in [*earlier, *results.get("failed", [])]}
    merged["failed"] = [each for key, each in sorted(failed.items()) if key not in there]
    if "texts" in merged:
        merged["texts"] = _merge_texts(json_path, found.get("texts", {}), merged["texts"])
    merged["order"] = [asdict(each) for each in order(merged["rows"], merged["suite"], merged["recipe"])]
    page = render(path.name, merged)
    write_text(json_path, dumps(merged))
    write_text(path.with_name(path.name + ".md"), page)
    return merged


def read(json_path: Path) -> Results:
    """The results in a file that `save` wrote; ValueError when it is none."""
    return read_results(json_path, *HEADER, "rows")


def dumps(results: Results) -> str:
    """JSON, one entry a line but for lists of plain numbers, which stay on one."""
    text = json.dumps(results, indent=1, allow_nan=False)
    # A string of JSON holds no line break, so what is matched is never inside one.
    return re.sub(r'\[\n[^\[\]{}"]*\]', lambda match: "[" + " ".join(match[0][1:-1].split()) + "]", text) + "\n"


def _key(row: Row) -> tuple[str, int]:
    return row["name"], row["seed"]


def _merge_rows(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    kept: dict[tuple[str, int], Row] = {}
    for row in rows:
        old = kept.get(_key(row), {})
        same = all(old.get(fact) == row.get(fact) for fact in ("tokens", "flops", "model"))
        same = same and old.get("learning_rate") in (None, row.get("learning_rate"))
        kept[_key(row)] = {**old, **row} if same else row
        if same and "texts" in row:
            kept[_key(row)]["texts"] = {**old.get("texts", {}), **row["texts"]}
    place = {name: i for i, name in enumerate(dict.fromkeys([*names, *(name for name, _ in kept)]))}
    return [kept[key] for key in sorted(kept, key=lambda key: (place[key[0]], key[1]))]


def _merge_texts(json_path: Path, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The texts of a file and those that come; ValueError for another text of the same name."""
    for name in {*old} & {*new}:
        if old[name]["sha256"] != new[name]["sha256"]:
            raise ValueError(
                f"{json_path} holds rows measured on another text of the name {name} ({old[name]['source']}); "
                f"give this one another name, as --on NAME=FILE"
            )
    return {**old, **new}


def curve_of(row: Row, key: str) -> list[list[float]]:
    """`curve` or `board_curve` of a row, the tokens of its source counted in; empty where it has none. ValueError when
    it goes beyond the run's own tokens."""
    curve = row.get(key) or []
    if curve and curve[-1][0] > row["own_tokens"]:
        raise ValueError(
            f"{key} of row {row['name']} ends at {curve[-1][0]} tokens, beyond the {row['own_tokens']} of its run; "
            f"curves count the run's own tokens, without those of its source"
        )
    before = row["tokens"] - row["own_tokens"]
    return [[tokens + before, *values] for tokens, *values in curve]


def render(title: str, results: Results) -> str:
    """The Markdown page of results, made from them alone."""
    rows: list[Row] = results["rows"]
    level = [row for row in rows if not row.get("apart")]
    apart = [row for row in rows if row.get("apart")]
    suite = results["suite"]
    of_text = "texts" in results
    headline = partial(text_tables.headline, results["recipe"]) if of_text else partial(_headline, suite)
    legend = text_tables.legend if of_text else _legend
    parts = [f"# {title}", _opening(results), headline(level), legend(results)]
    parts += _unequal(level)
    parts += results.get("notes", [])
    parts += _over_seeds(level)
    parts += _claims(level, results)
    if apart:
        parts += ["## Shown apart", "These rows saw other numbers of tokens than those above.", headline(apart)]
    if results.get("failed"):
        lines = [[each["name"], each["seed"], each["reason"]] for each in results["failed"]]
        parts += ["## Failed", table(["row", "seed", "reason"], lines)]
    if of_text:
        parts += text_tables.sections(rows)
    for section in (_starts, _coders, _routers, _maps, _curves):
        parts += section(rows)
    parts += _layers(rows)
    if suite == "calibration":
        parts += _published_layers()
    if results.get("figures"):
        parts += ["## Figures", *(f"![{Path(each).stem}]({each})" for each in results["figures"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _opening(results: Results) -> str:
    commits, machines = (
        sorted({str(row[fact]) for row in results["rows"] if row.get(fact)}) or [str(results[fact])]
        for fact in ("commit", "hardware")
    )
    return (
        f"Suite `{results['suite']}` at {results['scale']} scale, recipe `{results['recipe']}`, "
        f"by `{results['command']}`. Data {results['data_sha256'][:16]}; {' and '.join(machines)}; "
        f"{'commit' if len(commits) == 1 else 'commits'} {', '.join(commits)}."
    )


def token_word(results: Results) -> str:
    """`character`, `move` or, of text, `token`: what a token of these rows is."""
    if "token" in results:
        return str(results["token"])
    kinds = [row["model"]["tokens"] for row in results["rows"] if "tokens" in row.get("model", {})]
    return str(kinds[0]).removesuffix("s") if kinds else "character"


def _headline(suite: str, rows: Sequence[Row]) -> str:
    """One line a name, figures being means over its seeds; the paper's where it has any."""
    theirs = {row["name"]: published(suite, row["name"]) for row in rows}
    shown = any(theirs.values())

    def paper(name: str, measure: str) -> list[Any]:
        return [getattr(theirs[name], measure, None)] if shown else []

    beside = ["paper"] if shown else []
    header = ["row", "seeds", "loss", *beside, "coverage", *beside, "held-out", "reconstruction", *beside]
    header += ["equal-width held-out", "equal-width rec.", "random held-out", "random rec.", "layer", "L0", "alive"]
    header += ["tokens", "FLOPs", "active", "ratio", "parameters"]
    lines = []
    for name, group in by_name(rows).items():
        best = [found for row in group if (found := best_layer(row))]
        narrow = [found.get("subsample", found) for found in best]
        random = [found["random"] for found in best if "random" in found]
        loss = _mean([value(row, "loss") for row in group])
        lines.append(
            [
                name,
                len(group),
                None if loss is None else f"{loss:.4f}",
                *paper(name, "loss"),
                _mean([value(row, "coverage") for row in group]),
                *paper(name, "coverage"),
                _mean([value(row, "held_out_coverage") for row in group]),
                _mean([value(row, "reconstruction") for row in group]),
                *paper(name, "reconstruction"),
                *(_mean([one[key] for one in narrow]) for key in ("held_out_coverage", "reconstruction")),
                *(_mean([one[key] for one in random]) for key in ("held_out_coverage", "reconstruction")),
                ", ".join(str(each) for each in sorted({one["layer"] for one in best})) or None,
                f"{statistics.fmean(one['l0'] for one in best):.0f}" if best else None,
                f"{statistics.fmean(one['alive'] for one in best):.0f} of {best[0]['width']}" if best else None,
                f"{statistics.fmean(row['tokens'] for row in group) / 1e6:.2f}M",
                f"{statistics.fmean(row['flops'] for row in group):.2e}",
                f"{group[0]['active_parameters'] / 1e6:.3f}M",
                None if group[0].get("active_ratio") is None else f"{group[0]['active_ratio']:.2f}",
                f"{group[0]['total_parameters'] / 1e6:.3f}M",
            ]
        )
    return table(header, lines)


def _legend(results: Results) -> str:
    rows = results["rows"]
    token = token_word(results)
    text = (
        f"Figures are means over seeds. Loss is in nats per {token} on the validation games. Coverage, held-out "
        "coverage (features and threshold chosen on other games) and reconstruction are those of the layer with the "
        "highest reconstruction. Equal-width: the same for a random subset as wide as the dense layer, where a layer "
        "has more features. Random: the same architecture with random weights. L0 counts features above 0 per token. "
        "Tokens and FLOPs include those of the run that a row started from. Active parameters are the weights "
        "multiplied for one token, the ratio theirs to those of a dense GELU model of the same widths."
    )
    if any(published(results["suite"], row["name"]) for row in rows):
        text += (
            " The paper's models have 8 layers of width 512 and saw billions of characters, so its figures are to be "
            "compared in their order, not their size; it does not say which of its mixtures were upcycled."
        )
        if token != "character":
            text += " Its loss is per character and not comparable with one per move."
    text += _other_rates(rows)
    if any("splice" in row for row in rows):
        text += " The loss of an autoencoder's row is the model's with the reconstruction in place of its stream."
    return text


def _other_rates(rows: Sequence[Row]) -> str:
    """A sentence when rows learned at another rate than most."""
    rates = {row["name"]: row["learning_rate"] for row in rows if "learning_rate" in row and "splice" not in row}
    usual = statistics.mode(rates.values()) if rates else None
    others = [f"{name} at {rate:g}" for name, rate in rates.items() if rate != usual]
    return f" Rows learn at {usual:g}, but {', '.join(others)}." if others else ""


def _unequal(rows: Sequence[Row]) -> list[str]:
    """A sentence when rows of the main table did not see the same tokens. An autoencoder's fit comes after its model's
    training and is not counted here."""
    tokens = {row["name"]: row["tokens"] for row in rows if "splice" not in row}
    if not tokens or max(tokens.values()) <= 1.01 * min(tokens.values()):
        return []
    least, most = min(tokens, key=tokens.__getitem__), max(tokens, key=tokens.__getitem__)
    return [
        f"**Rows of this table saw unequal tokens**, from {tokens[least] / 1e6:.2f}M ({least}) to "
        f"{tokens[most] / 1e6:.2f}M ({most}): compare them with care."
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    given = [each for each in values if each is not None]
    return statistics.fmean(given) if given else None


def plus_minus(mean: float, half: float | None, digits: int, sign: str = "") -> str:
    """`0.512 +- 0.020`, or the mean alone where there is no interval."""
    return f"{mean:{sign}.{digits}f}" + ("" if half is None else f" +- {half:.{digits}f}")


def _digits(measure: str) -> int:
    return 4 if measure.startswith("loss") else 3


def _over_seeds(rows: Sequence[Row]) -> list[str]:
    lines, measures = [], measures_of(rows)
    for name, group in by_name(rows).items():
        taken = {m: [v for row in group if (v := value(row, m)) is not None] for m in measures}
        if max(map(len, taken.values())) > 1:
            cells = [plus_minus(*interval(taken[m]), _digits(m)) if taken[m] else None for m in measures]
            lines.append([name, len(group), *cells])
    if not lines:
        return []
    parts = ["## Over seeds", "Mean and 95% t-interval.", table(["row", "seeds", *measures.values()], lines)]
    found = {(each.name, each.base, each.measure): each for each in differences(rows)}
    pairs = list(dict.fromkeys((name, base) for name, base, _ in found))
    if pairs:
        lines = []
        for pair in pairs:
            each_m = {m: found.get((*pair, m)) for m in measures}
            cells = [None if d is None else plus_minus(d.mean, d.half, _digits(m), "+") for m, d in each_m.items()]
            lines.append([*pair, max(d.n for d in each_m.values() if d is not None), *cells])
        parts += [
            "Differences within a seed (row less the other), mean and 95% t-interval over the n seeds that both have; "
            "above 0 is better but for the loss.",
            table(["row", "less", "n", *measures.values()], lines),
        ]
    return parts


def _claims(rows: Sequence[Row], results: Results) -> list[str]:
    lines = []
    for each in order(rows, results["suite"], results["recipe"]):
        difference = each.difference
        given = plus_minus(difference.mean, difference.half, _digits(difference.measure), "+")
        lines.append([each.claim, each.answer, given, difference.n, each.paper])
    if not lines:
        return []
    return [
        "## The order that the paper claims",
        "Yes or no where the 95% interval of the difference within seeds decides"
        + ("" if "texts" in results else f" (for the loss: lies within or without {LOSS_MARGIN} nats)")
        + ", undecided where it does not or there is one seed; each line stands alone. Last column: what the paper's "
        "own numbers answer.",
        table(["claim", "here", "difference", "n", "paper"], lines),
    ]


def _section(title: str, text: str, header: Sequence[str], lines: Sequence[Sequence[Any]]) -> list[str]:
    return [f"## {title}", text, table(header, lines)] if lines else []


def _starts(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        if (start := row.get("start")) is not None:
            losses = [f"{start['valid_loss'][key]:.4f}" for key in ("source", "copied", "start")]
            seen = f"{(row['tokens'] - row['own_tokens']) / 1e6:.2f}M"
            lines.append([row["name"], row["seed"], seen, f"{start['noise']:g}", f"{start['redraw']:g}", *losses])
    header = ["row", "seed", "source's tokens", "noise", "redraw"]
    text = (
        "Validation loss of the source, of its copy before the experts were made to differ (noise in standard "
        "deviations of the encoder, redraw the share of units drawn anew), and of the start."
    )
    return _section("Where upcycled and continued rows began", text, [*header, "source", "copied", "start"], lines)


def _coders(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        if (found := row.get("splice")) is not None:
            losses = [f"{found[key]:.4f}" for key in ("loss", "loss_spliced", "loss_zero", "loss_increase")]
            fit = [found[key] for key in ("loss_recovered", "variance_explained")]
            alive = f"{found['alive']:.1%}"
            lines.append([row["name"], row["seed"], *losses, *fit, f"{found['l0']:.1f}", alive])
    header = ["row", "seed", "loss", "spliced", "zeroed", "increase", "loss recovered", "variance explained", "L0"]
    text = (
        "The model's loss as it is, with the reconstruction in place of its stream, and with the stream set to zero. "
        "Loss recovered is 1 when the reconstruction costs nothing; a model that is itself read needs none."
    )
    return _section("Autoencoders", text, [*header, "alive"], lines)


def _routers(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        for layer in (row.get("routing") or {"layers": []})["layers"]:
            error = layer["predicted_l0_error"]
            numbers = [layer[key] for key in ("pearson", "rank_agreement", "chosen_sparsest", "chosen_exactly")]
            load = f"{min(layer['load']):.3f} to {max(layer['load']):.3f}"
            of = f"{layer['mean_l0']:.0f} of {layer['hidden']}"
            predicted = None if error is None else f"{error:.1f}"
            lines.append([row["name"], row["seed"], layer["layer"], layer["router"], *numbers, of, predicted, load])
    header = ["row", "seed", "layer", "router", "r", "rank agreement", "among sparsest", "exactly those", "L0"]
    text = (
        "Score and true L0 of every expert on every token: their correlation r (the paper's figure 9: below "
        f"{ROUTER_CORRELATION} in trained experts), how well the score orders a token's experts by sparsity, how many "
        "of the chosen are among the sparsest, on how many tokens they are exactly those, and the error of the L0 that "
        "the score expects."
    )
    return _section("Router scores and true L0", text, [*header, "L0 error", "load"], lines)


def _maps(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        if (found := row.get("encoder_map")) is not None:
            numbers = [found["neighbours"], found["neighbour_share"], found["chance"]]
            lines.append([row["name"], row["seed"], found["layer"], found["experts"], *numbers])
    header = ["row", "seed", "layer", "experts", "neighbours", "in the same expert", "by chance"]
    text = "Of the nearest encoder rows of a unit, by cosine among all rows of the layer, how many are of its expert."
    return _section("Encoder rows of the experts", text, header, lines)


def _curves(rows: Sequence[Row]) -> list[str]:
    lines: list[list[Any]] = []
    for row in (row for row in rows if "splice" not in row):
        losses, boards = curve_of(row, "curve"), curve_of(row, "board_curve")
        for tokens, *values in boards or [[point[0]] for point in _thin(losses)]:
            near = min(losses, key=lambda point: abs(point[0] - tokens), default=None)
            shown: list[Any] = [None if each is None else float(each) for each in values[:3]] or [None] * 3
            layer = int(values[3]) if len(values) > 3 else None
            loss = None if near is None else f"{near[1]:.4f}"
            lines.append([row["name"], row["seed"], f"{tokens / 1e6:.2f}M", loss, *shown, layer])
    header = ["row", "seed", "tokens", "loss", "coverage", "held-out", "reconstruction", "layer"]
    if not any(row.get("board_curve") for row in rows):
        header, lines = header[:4], [line[:4] for line in lines]
    text = (
        "Along the training, the source's tokens counted in; the loss is that noted nearest, on part of the validation "
        "rows."
    )
    return _section("Against tokens", text, header, lines)


def _thin(points: list[list[float]]) -> list[list[float]]:
    """At most `CURVE_POINTS` of them, evenly, the last among them."""
    step = -(-len(points) // CURVE_POINTS)
    return points[::-1][:: step or 1][::-1]


def _layers(rows: Sequence[Row]) -> list[str]:
    parts = []
    for row in rows:
        if row.get("boards"):
            parts += [f"## {row['name']}, seed {row['seed']}, layer by layer", layers_table(row["boards"]["layers"])]
    return parts


def _published_layers() -> list[str]:
    lines = [
        [kind, measure, *values] for kind, measures in PUBLISHED_LAYERS.items() for measure, values in measures.items()
    ]
    text = "Layers of a published dense chess model (8 layers, 2,048 GELU units a layer) and of autoencoders on it."
    return ["## Published layers", text, table(["what", "measure", *map(str, range(8))], lines)]
