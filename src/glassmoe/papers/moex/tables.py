"""Results of a suite of the MoE-X paper: rows, failures and claims, and the page that compares them with the paper.

A number over several seeds is their mean. `rows.MeasuredRow` documents a row; `text_tables` has the tables of text.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from glassmoe.measure.intervals import interval, plus_minus
from glassmoe.measure.results import layer_sections
from glassmoe.measure.results_file import ResultsFile, joined_remarks, merged, section
from glassmoe.results import markdown_table, omitted, stored_as

from . import growth, knowledge, text_tables
from .claims import LOSS_MARGIN, Statement, all_measures_of, differences, order
from .paper import PUBLISHED_LAYERS, ROUTER_CORRELATION, published
from .rows import COST, FailedRow, MeasuredRow, TextFacts, by_name, cost, mean_of, values_of

CURVE_POINTS = 8
"""Points of a curve that the page shows, at most."""


@dataclass(frozen=True, kw_only=True)
class TableResults(ResultsFile):
    """What the results file of a suite holds."""

    suite: str
    """Name of the table or figure."""
    scale: str
    """cpu or gpu."""
    recipe: str
    """Name of the recipe that rows change."""
    token: str | None = omitted()
    """What a token is: character, move or token (of text)."""
    data_sha256: str
    """Fingerprint of the corpus that all rows were trained on."""
    names: list[str] = field(default_factory=list)
    """Rows in the declared order."""
    entries: list[MeasuredRow] = stored_as("rows", default_factory=list)
    failed: list[FailedRow] = field(default_factory=list)
    """Rows that failed."""
    texts: dict[str, TextFacts] | None = omitted()
    """For a suite of text: name -> text that was read."""
    remarks: list[str] | None = stored_as("notes", default_factory=list)
    order: list[Statement] = field(default_factory=list)
    """What the rows say about the paper's claims."""
    figures: list[str] | None = omitted()
    """Paths of the figures, relative to the page's folder."""

    SHARED: ClassVar[tuple[str, ...]] = ("suite", "scale", "recipe", "data_sha256")
    REQUIRED: ClassVar[tuple[str, ...]] = (*SHARED, "hardware", "command", "commit", "rows")

    def joined(self, old: TableResults, path: Path) -> TableResults:
        """One row for each name and seed. A new row keeps the measures of the old one that it lacks, if model and
        tokens are the same. A failure is dropped once its row exists."""
        rows = merged(old.entries, self.entries, lambda row: row.key, lambda before, row: row.with_measures_of(before))
        names = list(dict.fromkeys([*self.names, *old.names]))
        # A row that is only a source is never added, so its earlier failures are dropped.
        earlier = [each for each in old.failed if not names or each.name in names]
        return replace(
            self,
            token=self.token or old.token,
            names=names,
            entries=rows,
            failed=merged(earlier, self.failed, lambda each: each.key),
            texts=self._joined_texts(old, path),
            remarks=joined_remarks(old, self),
            figures=self.figures or old.figures,
        )

    def _joined_texts(self, old: TableResults, path: Path) -> dict[str, TextFacts] | None:
        """The texts of both; ValueError for another text of the same name."""
        ours, theirs = self.texts or {}, old.texts or {}
        for name in {*ours} & {*theirs}:
            if ours[name].sha256 != theirs[name].sha256:
                raise ValueError(
                    f"{path} holds rows measured on another text of the name {name} ({theirs[name].source}); "
                    f"give this one another name, as --on NAME=FILE"
                )
        return {**theirs, **ours} or None

    def completed(self) -> TableResults:
        place = {name: at for at, name in enumerate(dict.fromkeys([*self.names, *(row.name for row in self.entries)]))}
        rows = sorted(self.entries, key=lambda row: (place[row.name], row.seed))
        present = {row.key for row in rows}
        failed = sorted((each for each in self.failed if each.key not in present), key=lambda each: each.key)
        return replace(self, entries=rows, failed=failed, order=order(rows, self.suite, self.recipe))

    @property
    def token_word(self) -> str:
        """`character`, `move` or, of text, `token`: what a token of these rows is."""
        if self.token is not None:
            return self.token
        kinds = [row.model["tokens"] for row in self.entries if "tokens" in row.model]
        return str(kinds[0]).removesuffix("s") if kinds else "character"

    def sections(self, name: str) -> Iterable[str | None]:  # noqa: ARG002
        rows = self.entries
        level, apart = ([row for row in rows if row.apart == aside] for aside in (False, True))
        of_text = self.texts is not None
        headline = partial(text_tables.headline, self.suite, self.recipe) if of_text else partial(_headline, self.suite)
        parts = [_opening(self), headline(level), text_tables.legend(self) if of_text else _legend(self)]
        parts += [*_unequal(level), *(self.remarks or []), *_over_seeds(level), *_claims(level, self)]
        if apart:
            parts += [
                "## Shown apart",
                "These rows saw a different number of tokens than those above.",
                headline(apart),
            ]
        if self.failed:
            lines = [[each.name, each.seed, each.reason] for each in self.failed]
            parts += ["## Failed", markdown_table(["row", "seed", "reason"], lines)]
        if of_text:
            parts += text_tables.sections(rows)
        for part in (knowledge.sections, _starts, _coders, _routers, _maps, _curves):
            parts += part(rows)
        if self.suite == "table1":
            parts += growth.sections(rows, self.token_word)
        parts += layer_sections(rows)
        if self.suite == "calibration":
            parts += _published_layers()
        if self.figures:
            parts += ["## Figures", *(f"![{Path(each).stem}]({each})" for each in self.figures)]
        return parts

    def draw(self, path: Path) -> list[Path]:
        from .figures import draw

        return draw(self, path.parent, path.name)

    def table(self) -> str:
        """The first table, the files that were written and the rows that failed."""
        failures = [f"failed: {each.name}, seed {each.seed}: {each.reason}" for each in self.failed]
        return "\n".join([super().table(), *failures])


def _opening(results: TableResults) -> str:
    commits = sorted({row.commit for row in results.entries if row.commit}) or [str(results.commit)]
    machines = sorted({row.hardware for row in results.entries if row.hardware}) or [results.hardware]
    return (
        f"Suite `{results.suite}` at {results.scale} scale, recipe `{results.recipe}`, "
        f"by `{results.command}`. Data {results.data_sha256[:16]}; {' and '.join(machines)}; "
        f"{'commit' if len(commits) == 1 else 'commits'} {', '.join(commits)}."
    )


def _headline(suite: str, rows: Sequence[MeasuredRow]) -> str:
    """One line for each name, with means over its seeds, and the paper's numbers where it has any."""
    theirs = {row.name: published(suite, row.name) for row in rows}
    shown = any(theirs.values())

    def paper(name: str, measure: str) -> list[Any]:
        return [getattr(theirs[name], measure, None)] if shown else []

    beside = ["paper"] if shown else []
    header = ["row", "seeds", "loss", *beside, "coverage", *beside, "held-out", "reconstruction", *beside]
    header += ["equal-width held-out", "equal-width rec.", "random held-out", "random rec."]
    known = knowledge.known(rows)
    header += [*(knowledge.COLUMNS if known else ()), "layer", "L0", "alive", *COST]
    lines = []
    for name, group in by_name(rows).items():
        best = [layer for row in group if (layer := row.best_layer())]
        narrow = [layer.get("subsample", layer) for layer in best]
        random = [layer["random"] for layer in best if "random" in layer]
        loss = mean_of([row.value("loss") for row in group])
        lines.append(
            [
                name,
                len(group),
                None if loss is None else f"{loss:.4f}",
                *paper(name, "loss"),
                mean_of([row.value("coverage") for row in group]),
                *paper(name, "coverage"),
                mean_of([row.value("held_out_coverage") for row in group]),
                mean_of([row.value("reconstruction") for row in group]),
                *paper(name, "reconstruction"),
                *(mean_of([one[key] for one in narrow]) for key in ("held_out_coverage", "reconstruction")),
                *(mean_of([one[key] for one in random]) for key in ("held_out_coverage", "reconstruction")),
                *(knowledge.cells(group) if known else ()),
                ", ".join(str(each) for each in sorted({one["layer"] for one in best})) or None,
                f"{statistics.fmean(one['l0'] for one in best):.0f}" if best else None,
                f"{statistics.fmean(one['alive'] for one in best):.0f} of {best[0]['width']}" if best else None,
                *cost(group),
            ]
        )
    return markdown_table(header, lines)


def _legend(results: TableResults) -> str:
    rows = results.entries
    token = results.token_word
    text = (
        f"Numbers are means over seeds. Loss is in nats per {token} on the validation games. Coverage, held-out "
        "coverage (features and thresholds chosen on other games) and reconstruction are those of the layer with the "
        "highest reconstruction. Equal-width: the same for a random subset of features as wide as the dense layer, "
        "where a layer has more features. Random: the same architecture with random weights. L0 counts features above "
        "0 per token. Tokens and FLOPs include those of the source run. Active parameters are the weights multiplied "
        "for one token; the ratio compares them with a dense GELU model of the same widths."
    )
    if any(published(results.suite, row.name) for row in rows):
        text += (
            " The paper's models have 8 layers of width 512 and saw billions of characters: compare the order of the "
            "rows, not the values. The paper does not say which of its mixtures were upcycled."
        )
        if token != "character":
            text += " Its loss is per character and not comparable with a loss per move."
    text += knowledge.legend(rows) + _other_rates(rows)
    if any(row.splice is not None for row in rows):
        text += (
            " The loss of an autoencoder is that of the model with the reconstruction in place of its residual stream, "
            "on the validation rows that are counted under Autoencoders."
        )
    return text


def _other_rates(rows: Sequence[MeasuredRow]) -> str:
    """A sentence if some rows have another learning rate than most rows."""
    rates = {row.name: row.learning_rate for row in rows if row.learning_rate is not None and row.splice is None}
    usual = statistics.mode(rates.values()) if rates else None
    others = [f"{name} ({rate:g})" for name, rate in rates.items() if rate != usual]
    return f" The learning rate is {usual:g}, but for {', '.join(others)}." if others else ""


def _unequal(rows: Sequence[MeasuredRow]) -> list[str]:
    """A sentence if rows of the main table saw different numbers of tokens. Autoencoders are left out, because their
    fit comes after the training of their model."""
    tokens = {row.name: row.tokens for row in rows if row.splice is None}
    if not tokens or max(tokens.values()) <= 1.01 * min(tokens.values()):
        return []
    least, most = min(tokens, key=tokens.__getitem__), max(tokens, key=tokens.__getitem__)
    return [
        f"**Rows of this table saw unequal tokens**, from {tokens[least] / 1e6:.2f}M ({least}) to "
        f"{tokens[most] / 1e6:.2f}M ({most}): compare them with care."
    ]


def _digits(measure: str) -> int:
    return 4 if measure.startswith("loss") else 3


def _over_seeds(rows: Sequence[MeasuredRow]) -> list[str]:
    lines, measures = [], all_measures_of(rows)
    for name, group in by_name(rows).items():
        taken = {m: values_of(group, m) for m in measures}
        if max(map(len, taken.values())) > 1:
            cells = [plus_minus(*interval(taken[m]), _digits(m)) if taken[m] else None for m in measures]
            lines.append([name, len(group), *cells])
    if not lines:
        return []
    parts = ["## Over seeds", "Mean and 95% t-interval.", markdown_table(["row", "seeds", *measures.values()], lines)]
    by_pair = {(each.name, each.base, each.measure): each for each in differences(rows)}
    pairs = list(dict.fromkeys((name, base) for name, base, _ in by_pair))
    if pairs:
        lines = []
        for pair in pairs:
            each_m = {m: by_pair.get((*pair, m)) for m in measures}
            cells = [None if d is None else plus_minus(d.mean, d.half, _digits(m), "+") for m, d in each_m.items()]
            lines.append([*pair, max(d.n for d in each_m.values() if d is not None), *cells])
        parts += [
            "Differences within a seed (row minus the other), mean and 95% t-interval over the n seeds that both have. "
            "A positive difference is better, except for the loss.",
            markdown_table(["row", "minus", "n", *measures.values()], lines),
        ]
    return parts


def _claims(rows: Sequence[MeasuredRow], results: TableResults) -> list[str]:
    lines = []
    for each in order(rows, results.suite, results.recipe):
        difference = each.difference
        shown = plus_minus(difference.mean, difference.half, _digits(difference.measure), "+")
        lines.append([each.claim, each.answer, shown, difference.n, each.paper])
    if not lines:
        return []
    return [
        "## The paper's claims",
        "Yes or no where the 95% interval of the difference within seeds decides"
        + ("" if results.texts is not None else f" (for the loss: lies inside or outside {LOSS_MARGIN} nats)")
        + ", otherwise undecided, as with one seed. Each line stands alone. Last column: what the paper's own numbers "
        "answer.",
        markdown_table(["claim", "here", "difference", "n", "paper"], lines),
    ]


def _starts(rows: Sequence[MeasuredRow]) -> list[str]:
    lines = []
    for row in rows:
        if (start := row.start) is not None:
            losses = [f"{start['valid_loss'][key]:.4f}" for key in ("source", "copied", "start")]
            seen = f"{(row.tokens - row.own_tokens) / 1e6:.2f}M"
            lines.append([row.name, row.seed, seen, f"{start['noise']:g}", f"{start['redraw']:g}", *losses])
    header = ["row", "seed", "source's tokens", "noise", "redraw"]
    text = (
        "Validation loss of the source, of its copy before the experts were made different, and of the start. Noise is "
        "in standard deviations of the encoder; redraw is the share of units with new random weights."
    )
    return section("Start of upcycled and continued rows", text, [*header, "source", "copied", "start"], lines)


def _coders(rows: Sequence[MeasuredRow]) -> list[str]:
    lines = []
    for row in rows:
        if (splice := row.splice) is not None:
            losses = [f"{splice[key]:.4f}" for key in ("loss", "loss_spliced", "loss_zero", "loss_increase")]
            fit = [splice[key] for key in ("loss_recovered", "variance_explained")]
            alive = f"{splice['alive']:.1%}"
            lines.append([row.name, row.seed, splice.get("rows"), *losses, *fit, f"{splice['l0']:.1f}", alive])
    header = [
        "row",
        "seed",
        "rows",
        "loss",
        "spliced",
        "zeroed",
        "increase",
        "loss recovered",
        "variance explained",
        "L0",
    ]
    text = (
        "On the first validation rows, as many as the third column says: the loss of the model itself, with the "
        "reconstruction in place of its residual stream (spliced), and with zeros there. Loss recovered is 1 when the "
        "reconstruction costs nothing."
    )
    return section("Autoencoders", text, [*header, "alive"], lines)


def _routers(rows: Sequence[MeasuredRow]) -> list[str]:
    lines = []
    for row in rows:
        for layer in (row.routing or {"layers": []})["layers"]:
            error = layer["predicted_l0_error"]
            numbers = [layer[key] for key in ("pearson", "rank_agreement", "chosen_sparsest", "chosen_exactly")]
            load = f"{min(layer['load']):.3f} to {max(layer['load']):.3f}"
            of = f"{layer['mean_l0']:.0f} of {layer['hidden']}"
            predicted = None if error is None else f"{error:.1f}"
            lines.append([row.name, row.seed, layer["layer"], layer["router"], *numbers, of, predicted, load])
    header = ["row", "seed", "layer", "router", "r", "rank agreement", "among sparsest", "exactly those", "L0"]
    text = (
        "Score and true L0 of every expert on every token. r: their correlation (the paper's figure 9: below "
        f"{ROUTER_CORRELATION} in trained experts). Rank agreement: how well the score orders a token's experts by "
        "sparsity. Among sparsest: share of the chosen experts that are among the sparsest. Exactly those: share of "
        "the tokens whose chosen experts are exactly the sparsest. L0 error: error of the L0 that the score predicts."
    )
    return section("Router scores and true L0", text, [*header, "L0 error", "load"], lines)


def _maps(rows: Sequence[MeasuredRow]) -> list[str]:
    lines = []
    for row in rows:
        if (mapped := row.encoder_map) is not None:
            numbers = [mapped["neighbours"], mapped["neighbour_share"], mapped["chance"]]
            lines.append([row.name, row.seed, mapped["layer"], mapped["experts"], *numbers])
    header = ["row", "seed", "layer", "experts", "neighbours", "in the same expert", "by chance"]
    text = "Share of a unit's nearest encoder rows, by cosine over all rows of the layer, that are of its own expert."
    return section("Encoder rows of the experts", text, header, lines)


def _curves(rows: Sequence[MeasuredRow]) -> list[str]:
    lines: list[list[Any]] = []
    for row in (row for row in rows if row.splice is None):
        losses, boards = row.curve_from_source("curve"), row.curve_from_source("board_curve")
        for tokens, *scores in boards or [[point[0]] for point in _thin(losses)]:
            near = min(losses, key=lambda point: abs(point[0] - tokens), default=None)
            shown: list[Any] = [None if each is None else float(each) for each in scores[:3]] or [None] * 3
            layer = int(scores[3]) if len(scores) > 3 else None
            loss = None if near is None else f"{near[1]:.4f}"
            lines.append([row.name, row.seed, f"{tokens / 1e6:.2f}M", loss, *shown, layer])
    header = ["row", "seed", "tokens", "loss", "coverage", "held-out", "reconstruction", "layer"]
    if not any(row.board_curve for row in rows):
        header, lines = header[:4], [line[:4] for line in lines]
    text = (
        "Measures during training; tokens include those of the source. The loss is the nearest one logged, on part of "
        "the validation rows."
    )
    return section("Against tokens", text, header, lines)


def _thin(points: list[list[float]]) -> list[list[float]]:
    """At most `CURVE_POINTS` points at even distances, including the last."""
    step = -(-len(points) // CURVE_POINTS)
    return points[::-1][:: step or 1][::-1]


def _published_layers() -> list[str]:
    lines = [
        [kind, measure, *values] for kind, measures in PUBLISHED_LAYERS.items() for measure, values in measures.items()
    ]
    text = "Layers of a published dense chess model (8 layers, 2,048 GELU units per layer) and of autoencoders on it."
    return ["## Published layers", text, markdown_table(["what", "measure", *map(str, range(8))], lines)]
