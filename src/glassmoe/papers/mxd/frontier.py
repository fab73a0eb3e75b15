"""`glassmoe reproduce mxd-frontier`: accuracy against sparsity of coders that replace an MLP, as in the Mixture of
Decoders paper (Oldfield et al. 2025, arXiv 2505.21364). For each seed it runs one sweep and measures what the model
loses by each coder and, for chess models, what the features detect on the board. It reports whether the mixture is
ahead at every k."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar, NamedTuple

from glassmoe.chess.board_evaluation import evaluate_boards
from glassmoe.coders.configuration import Normalise, SweepConfig
from glassmoe.coders.fit import fit
from glassmoe.coders.sweep import sweep
from glassmoe.coders.task import corpus_for
from glassmoe.console import say
from glassmoe.data.corpus import Corpus
from glassmoe.inspect.readers import Reader, open_coders
from glassmoe.measure.encoder_map import require_plots
from glassmoe.measure.fidelity import CoderFidelity, evaluate_fidelity
from glassmoe.measure.intervals import interval, plus_minus
from glassmoe.measure.results_file import ResultsFile, figure, joined_remarks, merged, option_words, origin
from glassmoe.model.subject import Subject, load_subject
from glassmoe.pages.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, drawing, write
from glassmoe.results import Result, markdown_table, omitted, stored_as
from glassmoe.training.records import METRICS
from glassmoe.training.tracking import read_metrics

DEFAULT = ("mxd", "mxd-one", "transcoder", "skip-transcoder")
RIVALS = DEFAULT[2:]


class Measure(NamedTuple):
    """A measure of the rows: its name in words, and whether lower is better."""

    words: str
    less: bool


FIDELITY = {
    "normalised_mse": Measure("normalised MSE", True),
    "loss_increase": Measure("loss increase (nats a token)", True),
}
BOARDS = {
    "held_out_coverage": Measure("held-out coverage", False),
    "reconstruction": Measure("reconstruction", False),
}
COLUMNS = {
    "l0": ("L0", 1),
    "largest_share": ("largest", 3),
    "normalised_mse": ("normalised MSE", 4),
    "loss_increase": ("increase", 4),
    "loss_recovered": ("recovered", 3),
    "dead": ("dead", 0),
    **{name: (each.words, 4) for name, each in BOARDS.items()},
}
"""Measures in the page's table: the word above each, and its decimals. A measure that no row has is no column."""
STYLES = {
    "mxd": (VERMILLION, "-"),
    "mxd-one": (VERMILLION, "--"),
    "mxd-relu": (ORANGE, "-"),
    "mxd-gelu": (ORANGE, "--"),
    "mxd-glu": (ORANGE, ":"),
    "transcoder": (BLUE, "-"),
    "skip-transcoder": (GREEN, "-"),
    "moe-x": (PURPLE, "-"),
    "switch": (PURPLE, "--"),
}
LEGEND = (
    "Means over seeds, with half the 95% interval where there are several. Normalised MSE is the mean squared error as "
    "a share of the target's variance. Increase is the change of the loss with the coder in place of the MLP, in nats "
    "per token. Recovered is the share of the loss between zeros and the MLP. Every mxd and the transcoder have the "
    "same number of parameters, up to one expert; the skip transcoder also has a linear map of its input, as in the "
    "paper. mxd starts as in the paper, with experts around 0; mxd-one starts with all experts equal to one MLP. "
    "mxd-relu, mxd-gelu and mxd-glu have that hidden activation in place of the model's own. moe-x and switch are "
    "mixtures of experts of k features, two of them for each token; their L0 is measured, not set."
)
LARGEST_LEGEND = (
    "Largest: share of the one feature that has most of it in the strength of all features on the held-out text. Near "
    "1, one feature that is always on does the work."
)
FACTS: dict[str, Callable[[Any], str]] = {
    "tokens_fitted": lambda tokens: f"{tokens / 1e6:.2f}M",
    "steps": "{:,}".format,
    "lr": "{:.1e}".format,
    "loss": "{:.4f}".format,
    "loss_zero": "{:.4f}".format,
}
"""Facts in the page's first sentences, and how each is written. Rows that join a file may differ in them."""
FIT_COLUMNS = {"tokens_fitted": "tokens", "lr": "learning rate"}
"""Facts that are columns of the table too where rows differ."""
CURVE_LEGEND = (
    "Normalised MSE, and L0 in brackets, on a few held-out rows of the data, the same each time, while the learning "
    "rate falls; means over seeds."
)
BOARDS_LEGEND = "Coverage and reconstruction were measured on {games} games; as many others chose the features."


@dataclass(frozen=True)
class FrontierPoint(Result):
    """One validation of a coder during its fit."""

    tokens: int
    """Tokens that it had learned from."""
    normalised_mse: float
    l0: float


@dataclass(frozen=True, kw_only=True)
class FrontierRow(CoderFidelity):
    """One coder at one k and seed, with its fidelity."""

    name: str
    """Kind of the coder, with its variant."""
    seed: int
    k: int
    """Features per token."""
    tokens_fitted: int
    """Tokens of its fit."""
    steps: int
    lr: float
    """Peak learning rate."""
    games: int | None = omitted()
    """Games that tested the features on boards; as many others chose them."""
    held_out_coverage: float | None = omitted()
    reconstruction: float | None = omitted()
    curve: list[FrontierPoint] | None = omitted()
    """Validations during the fit, on the same tokens each time; None where they were not kept."""

    def value(self, measure: str) -> float | None:
        number: float | None = getattr(self, measure)
        return number


@dataclass(frozen=True)
class FrontierClaim(Result):
    """Whether a mixture is ahead of a transcoder at one k in one measure."""

    k: int
    name: str
    rival: str
    measure: str = stored_as("figure")
    mean: float = 0.0
    """Difference within a seed, mean over the seeds that both have."""
    half: float | None = None
    """Half the 95% interval, None for one seed."""
    n: int = 0
    """Seeds."""
    answer: str = "undecided"
    """yes or no where the interval decides."""


@dataclass(frozen=True, kw_only=True)
class FrontierResults(ResultsFile):
    """Coders of one layer of one model."""

    suite: str = "mxd-frontier"
    model: str
    """Name of the model's folder."""
    layer: int
    data_sha256: str
    """Fingerprint of the corpus that coders were fitted to and measured on."""
    source_sha256: str
    """Sha256 of the model's weights."""
    entries: list[FrontierRow] = stored_as("rows", default_factory=list)
    claims: list[FrontierClaim] = field(default_factory=list)
    figures: list[str] | None = omitted()

    SHARED: ClassVar[tuple[str, ...]] = ("suite", "model", "layer", "data_sha256", "source_sha256")
    REQUIRED: ClassVar[tuple[str, ...]] = (*SHARED, "rows")
    OTHERWISE: ClassVar[str] = "give another --results"

    def joined(self, old: FrontierResults, path: Path) -> FrontierResults:  # noqa: ARG002
        rows = merged(old.entries, self.entries, lambda row: (row.k, row.name, row.seed))
        return replace(self, entries=rows, remarks=joined_remarks(old, self))

    def completed(self) -> FrontierResults:
        place = {name: at for at, name in enumerate(STYLES)}
        rows = sorted(self.entries, key=lambda row: (row.k, place.get(row.name, len(place)), row.name, row.seed))
        return replace(self, entries=rows, claims=claims(rows))

    def sections(self, name: str) -> Iterable[str | None]:
        rows = self.entries
        measures = measures_of(rows)
        fit_columns = [fact for fact in FIT_COLUMNS if len({FACTS[fact](row.value(fact)) for row in rows}) > 1]
        columns = {
            each: words for each, (words, _) in COLUMNS.items() if any(row.value(each) is not None for row in rows)
        }
        lines = [
            _line(coder, k, [row for row in rows if (row.name, row.k) == (coder, k)], fit_columns, columns)
            for k, coder in dict.fromkeys((row.k, row.name) for row in rows)
        ]
        header = ["coder", "k", "seeds", *(FIT_COLUMNS[fact] for fact in fit_columns), "features", "parameters"]
        header += columns.values()
        answers = [
            [
                f"{each.name} is ahead of {each.rival} at k = {each.k} in {measures[each.measure].words}",
                each.answer,
                plus_minus(each.mean, each.half, 4, "+"),
                each.n,
                "-" if each.measure in BOARDS else "yes",
            ]
            for each in self.claims
        ]
        return [
            self._opening(),
            markdown_table(header, lines),
            f"{LEGEND} {LARGEST_LEGEND}" if "largest_share" in columns else LEGEND,
            BOARDS_LEGEND.format(games=max(row.games or 0 for row in rows)) if {*BOARDS} & {*columns} else None,
            *(self.remarks or []),
            *_against_tokens(rows),
            "## The paper's claims",
            "Yes or no where the 95% interval of the difference within seeds decides.",
            markdown_table(["claim", "here", "difference", "n", "paper"], answers),
            figure(name),
        ]

    def _opening(self) -> str:
        tokens, steps, lr, loss, loss_zero = (_range(self.entries, fact) for fact in FACTS)
        return (
            f"Layer {self.layer} of {self.model} (weights {self.source_sha256[:12]}), by `{self.command}`. Data "
            f"{self.data_sha256[:12]}; {self.hardware}; commit {self.commit}. Each coder was fitted to {tokens} tokens "
            f"in {steps} steps at a peak learning rate of {lr}. The model's own loss on the held-out text is {loss} "
            f"nats a token; with zeros in place of the MLP's output {loss_zero}."
        )

    def draw(self, path: Path) -> list[Path]:
        return draw(self.entries, path)


def mxd_frontier(
    model: str,
    layer: int,
    *,
    data: str | Path | None,
    k: Sequence[int],
    seeds: Sequence[int],
    coders: Sequence[str],
    games: int,
    tokens: int,
    batch_tokens: int,
    context: int | None,
    lr: float | None,
    normalise: Normalise | None,
    features: int | None,
    activation: str | None,
    rows: int,
    device: str,
    out: str | Path,
    results: str | Path,
) -> FrontierResults:
    """Measure accuracy against sparsity for coders of one layer at every k. Writes
    `results/mxd-frontier-MODEL-layerN.json`, `.md` and a figure after each seed, and keeps the rows of other coders.
    Finished sweeps are used again; a stopped one resumes. ValueError for a user's mistake, before anything is fitted.

    `glassmoe.api.papers_mxd.mxd_frontier` documents the arguments.
    """
    require_plots("matplotlib.figure", "Drawing figures")
    name, out = f"mxd-frontier-{Path(model).name}-layer{layer}", Path(out)
    options: dict[str, Any] = {
        "k": ",".join(map(str, k)),
        "seeds": ",".join(map(str, seeds)),
        "coders": ",".join(coders),
        "rows": rows,
    }
    settings: dict[str, Any] = {"features": features, "activation": activation, "tokens": tokens}
    settings |= {"batch_tokens": batch_tokens, "context": context, "lr": lr, "normalise": normalise}
    options |= {"games": games or None, **settings}
    words = option_words(options)
    subject = load_subject(model, device)
    for seed in seeds:
        folder = out / name / "+".join(coders) / f"seed{seed}"
        config = sweep(
            model,
            layers=[layer],
            coders=coders,
            ks=k,
            data=None if data is None else str(data),
            out=out / name,
            seed=seed,
            device=device,
            **settings,
        )
        say(f"seed {seed}: {folder}")
        fit(config, folder, subject)
        fitted, readers = open_coders(folder, subject, device)
        measured = evaluate_fidelity(fitted, readers, max_rows=rows).to_dict()
        corpus = corpus_for(model, config.data.path, subject)
        if games:
            _measure_boards(measured, fitted, readers, corpus, games)
        saved = FrontierResults(
            model=Path(model).name,
            layer=layer,
            command=f"glassmoe reproduce mxd-frontier --model {Path(model).name} --layer {layer} --data DATA" + words,
            data_sha256=corpus.fingerprint,
            source_sha256=next(iter(measured.values()))["source_sha256"],
            entries=_rows(seed, config, measured, curves(folder)),
            **origin(config.train.device),
        ).save(results, name)
    return saved


def _measure_boards(
    measured: dict[str, dict[str, Any]], subject: Subject, readers: Mapping[str, Reader], corpus: Corpus, games: int
) -> None:
    """Add the boards measure to the measures of every coder."""
    measure = partial(evaluate_boards, subject.model, corpus, games=games, brief=True)
    for name, reader in readers.items():
        (layer,) = measure(layers=[reader.number], coder=reader.layer, site=reader.place.site).layers
        measured[name] |= {"games": games, **{key: getattr(layer, key) for key in BOARDS}}


def curves(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Each coder's validations during a sweep, in the order of the steps: what the fields of `FrontierPoint` hold."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in read_metrics(folder / METRICS):
        for name, values in line.get("valid_coders", {}).items():
            found.setdefault(name, []).append({"tokens": line.tokens, **values})
    return found


def _rows(
    seed: int, config: SweepConfig, measured: dict[str, dict[str, Any]], validated: Mapping[str, Any]
) -> list[FrontierRow]:
    length = int(config.data.rows.split(":")[1]) - 1
    fitted = {"tokens_fitted": config.train.steps * config.train.batch_rows * length, "steps": config.train.steps}
    by_folder = config.fits()
    return [
        FrontierRow.from_dict(
            {"name": by_folder[folder].coder.label, "seed": seed, **fitted, "lr": config.optimizer.lr, **values}
            | {"curve": validated.get(folder)}
        )
        for folder, values in measured.items()
    ]


def measures_of(rows: Sequence[FrontierRow]) -> dict[str, Measure]:
    """The measures that these rows have."""
    return {**FIDELITY, **(BOARDS if any(row.reconstruction is not None for row in rows) else {})}


def claims(rows: Sequence[FrontierRow]) -> list[FrontierClaim]:
    """Is a mixture of decoders ahead of the transcoders at every k, in every measure? The mixtures are `mxd`, which
    starts as in the paper, and `mxd-one`; differences are within the seeds that both have. The paper answers yes to all
    (it does not measure boards)."""
    statements = []
    ks = sorted({row.k for row in rows})
    for k, name, rival, (measure, (_, less)) in product(ks, DEFAULT[:2], RIVALS, measures_of(rows).items()):
        ours, theirs = (_by_seed(rows, each, k, measure) for each in (name, rival))
        differences = [ours[seed] - theirs[seed] for seed in sorted({*ours} & {*theirs})]
        if differences:
            mean, half = interval(differences)
            decided = half is not None and abs(mean) > half
            answer = ("yes" if (mean < 0) == less else "no") if decided else "undecided"
            statements.append(FrontierClaim(k, name, rival, measure, mean, half, len(differences), answer))
    return statements


def _by_seed(rows: Sequence[FrontierRow], name: str, k: int, measure: str) -> dict[int, float]:
    own = [row for row in rows if (row.name, row.k) == (name, k)]
    return {row.seed: value for row in own if (value := row.value(measure)) is not None}


def _range(rows: Sequence[FrontierRow], fact: str) -> str:
    """A fact of all rows: one value, or the lowest and the highest."""
    values = [value for row in rows if (value := row.value(fact)) is not None]
    return " to ".join(dict.fromkeys(FACTS[fact](value) for value in (min(values), max(values))))


def _line(
    name: str, k: int, group: Sequence[FrontierRow], fit_columns: Sequence[str], columns: Iterable[str]
) -> list[Any]:
    def words(measure: str) -> str | None:
        values = [value for row in group if (value := row.value(measure)) is not None]
        return plus_minus(*interval(values), COLUMNS[measure][1]) if len(values) == len(group) else None

    fit = [_range(group, fact) for fact in fit_columns]
    return [name, k, len(group), *fit, f"{group[0].features:,}", f"{group[0].parameters:,}", *map(words, columns)]


def _against_tokens(rows: Sequence[FrontierRow]) -> list[str]:
    """The learning curves: a line for each k and number of tokens, a column for each coder, means over seeds."""
    values: dict[tuple[int, int], dict[str, list[FrontierPoint]]] = {}
    for row in rows:
        for point in row.curve or []:
            values.setdefault((row.k, point.tokens), {}).setdefault(row.name, []).append(point)
    if not values:
        return []
    names = list(dict.fromkeys(row.name for row in rows if row.curve))
    lines = [
        [k, f"{tokens:,}", *(_mean_point(at.get(name)) for name in names)] for (k, tokens), at in sorted(values.items())
    ]
    return ["## Against tokens", CURVE_LEGEND, markdown_table(["k", "tokens", *names], lines)]


def _mean_point(points: Sequence[FrontierPoint] | None) -> str | None:
    if not points:
        return None
    return f"{mean(each.normalised_mse for each in points):.3f} ({mean(each.l0 for each in points):.1f})"


def draw(rows: Sequence[FrontierRow], path: Path) -> list[Path]:
    """The frontier: every measure against k, a line for each coder, with 95% intervals."""
    measures, ks = measures_of(rows), sorted({row.k for row in rows})
    with drawing():
        from matplotlib.figure import Figure

        canvas = Figure(figsize=(7.2, 2.9 * len(measures) / 2), layout="constrained")
        panels = canvas.subplots(len(measures) // 2, 2, squeeze=False).flat
        for panel, (key, (words, _)) in zip(panels, measures.items(), strict=True):
            for name in dict.fromkeys(row.name for row in rows):
                by_k: dict[int, list[float]] = {}
                for row in rows:
                    if row.name == name and (value := row.value(key)) is not None:
                        by_k.setdefault(row.k, []).append(value)
                points = {k: interval(by_k[k]) for k in sorted(by_k)}
                means, halves = [mean for mean, _ in points.values()], [half or 0.0 for _, half in points.values()]
                colour, dashes = STYLES.get(name, (GREY, "-"))
                panel.errorbar(
                    list(points), means, halves, label=name, color=colour, linestyle=dashes, marker="o", capsize=2
                )
            panel.set_xscale("log", base=2)
            panel.set_xlabel("features a token (k)")
            panel.set_title(words)
            panel.set_xticks(ks, [str(k) for k in ks])
            panel.minorticks_off()
        canvas.axes[0].legend()
        return write(canvas, path)
