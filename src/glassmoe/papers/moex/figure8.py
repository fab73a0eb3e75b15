"""`glassmoe reproduce figure8`: how well explanations predict where features fire, in each tenth of their strength
and where they do not fire, for several models (MoE-X, Figure 8); and the best explained features, with a place where
each fires (Table 5).

Activations of GELU and similar functions are almost never 0, so no window would be silent. As Paulo et al. 2024 do with
neurons, only the k greatest features of a token count: k is the mean L0 of MoE-X, and then 32.

A rule of position predicts well a feature that fires from some token of a row on, although the feature has no meaning.
A rule of source predicts a feature without reading a token. Features whose explanation is such a rule are therefore
counted separately.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from glassmoe.coders.names import require_coder, short_name
from glassmoe.console import say
from glassmoe.explaining.explained import choose_features, explain_features, gathering_for
from glassmoe.explaining.judges import OF_RULES
from glassmoe.explaining.opening import LayerExamples, fitted_row, open_all_examples, open_layers
from glassmoe.explaining.results import MeanInterval, ScoreSummary
from glassmoe.explaining.trials import ExplanationProtocol, Judge
from glassmoe.inspect.readers import Reader, with_coders
from glassmoe.measure.encoder_map import require_plots
from glassmoe.measure.intervals import plus_minus
from glassmoe.measure.results_file import ResultsFile, figure, option_words, origin
from glassmoe.model.subject import Subject
from glassmoe.pages.plots import drawing, write
from glassmoe.results import Result, markdown_table, stored_as

from .best_explained import BEST, KINDS, DetectedFeature, KindScores, best_explained, speaks_of
from .canvas import style

DENSE = ("gelu", "gelu-tanh", "geglu", "swiglu", "solu", "switch", "neurons")
"""Layers whose features are almost never 0."""
CHECK = 32
"""The k for neurons in delphi's article."""
FEATURES = {"cpu": 300, "gpu": 1000}


@dataclass(frozen=True, kw_only=True)
class Figure8Row(Result):
    """The features of one layer of one model."""

    name: str
    run: str
    """Name of the run's folder."""
    keep: int | None
    """Greatest features of a token that count, None where all do."""
    corpus: str
    """Name of the corpus that was read."""
    data_sha256: str
    reader: str
    """Name of the set of features."""
    l0: float
    """Features of a token."""
    read_tokens: int
    features: int
    """Features drawn at random."""
    silent: int
    """Features that never fire."""
    unexplained: int
    scored: int
    scores: dict[str, ScoreSummary] = field(default_factory=dict)
    """Scorer -> means over features."""
    control: dict[str, ScoreSummary] = field(default_factory=dict)
    """The same with another feature's explanation."""
    of: dict[str, KindScores] = field(default_factory=dict)
    """Kind of explanation (place, source, others) -> scores."""
    best: list[DetectedFeature] = field(default_factory=list)

    def score(self, name: str, key: str, control: bool = False) -> str:
        """Mean and interval of a scorer's number, - where there is none."""
        return _mean(getattr((self.control if control else self.scores).get(name), key, None))


@dataclass(frozen=True, kw_only=True)
class Figure8Results(ResultsFile):
    """Models side by side."""

    suite: str = "figure8"
    protocol: dict[str, Any]
    """Windows of each tenth of strength (`per_decile`), windows where a feature is silent (`silent`), and the seed."""
    judge: dict[str, Any]
    """Name and settings of who explains and judges."""
    features: int
    """Features of each row, drawn at random."""
    entries: list[Figure8Row] = stored_as("rows", default_factory=list)

    def sections(self, name: str) -> Iterable[str | None]:
        rows, protocol = self.entries, self.protocol
        lines, tenths = [], []
        for row in rows:
            counted = [f"{row.l0:.1f}", f"{row.scored} of {row.features}", row.silent]
            own = [row.score("detection", key) for key in ("balanced_accuracy", "f1")]
            control = row.score("detection", "balanced_accuracy", control=True)
            lines.append([row.name, *counted, *own, control, *(row.score(*other) for other in _OTHERS)])
            detection = row.scores.get("detection")
            accuracies = _tenths(detection) if detection else [None] * 11
            tenths.append([row.name, *(None if each is None else each.mean for each in accuracies)])
        shown = [index for index in range(len(_HEADER)) if any(line[index] != "-" for line in lines)]
        data = ", ".join(sorted({f"{row.corpus} ({row.data_sha256[:12]})" for row in rows}))
        return [
            self.opening(),
            markdown_table([_HEADER[i] for i in shown], [[line[i] for i in shown] for line in lines]),
            f"Means over features drawn at random, without silent ones, with half the 95% interval. {self._judged()} "
            f"on {protocol['per_decile']} windows of each tenth of a feature's strength and "
            f"{protocol['silent']} windows where it does not fire, from documents that did not explain it. `shuffled`: "
            f"the same with another feature's explanation. L0: features per token; for GELU, GEGLU, SwiGLU, SoLU and "
            f"Switch layers only the greatest k features of a token count. Read from {data}; the paper reads "
            f"RedPajama, and its explainer and judge is a language model of 70B, so its accuracies are not comparable.",
            *_fewer(rows),
            *_other_data(rows),
            *(self.remarks or []),
            *_findings(rows),
            "## Accuracy in each tenth, the strongest first, and where the feature does not fire",
            markdown_table(["features", *map(str, range(1, 11)), "not"], tenths),
            figure(name),
        ]

    def _judged(self) -> str:
        """Who explained and who judged, the beginning of a sentence."""
        name = str(self.judge["name"])
        own = name.removesuffix(OF_RULES)
        words = f"Judged by {name}" if own == name else f"Explained by rules and judged by {own}"
        if any("probability" in row.scores for row in self.entries):
            words += ", by the odds of yes against no (their AUC needs no threshold; 0.5 is chance),"
        return words

    def draw(self, path: Path) -> list[Path]:
        return _draw(self, path)


def figure8(
    runs: Sequence[str | Path],
    *,
    layer: int,
    coders: Sequence[str],
    judge: Judge,
    scale: Literal["cpu", "gpu"],
    features: int | None,
    keep: int | None,
    data: str | Path | None,
    tokens: int | None,
    per_decile: int,
    silent: int,
    min_windows: int,
    seed: int,
    again: bool,
    name: str | None,
    results: str | Path,
    device: str,
) -> Figure8Results:
    """Measure how well explanations detect where features fire, in each tenth of their strength. Writes
    `results/figure8-NAME.json`, `.md` and a figure after each set of features. An interrupted command resumes.
    `glassmoe.api.papers.figure8` documents the arguments.
    """
    require_plots("matplotlib.figure", "Drawing figures")
    if "detection" not in judge.scorers:
        raise ValueError("figure8 shows the accuracy of detection; give --judge rules, embedding, or a language model")
    protocol = ExplanationProtocol(per_decile, silent, seed, min_windows)
    usual = gathering_for(tokens, per_decile, silent)
    count = features or FEATURES[scale]
    opened = [(str(run), *open_layers(run, layer, coder="all", device=device)) for run in runs]
    opened = _chosen(opened, coders)
    # Layers of a pretrained model are read in the rows of the coders beside them.
    context = min((row for _, _, readers in opened for each in readers if (row := fitted_row(each))), default=None)
    names = [Path(run).name for run in runs]
    options = {
        "layer": layer,
        "coder": ",".join(coders) or None,
        "scale": None if scale == "cpu" else scale,
        "features": features,
        "keep": keep,
        "tokens": tokens,
        "per_decile": None if per_decile == ExplanationProtocol.per_decile else per_decile,
        "silent": None if silent == ExplanationProtocol.silent else silent,
        "min_windows": min_windows or None,
        "seed": seed or None,
        "judge": judge.name.removesuffix(OF_RULES),
        "explainer": "rules" if judge.name.endswith(OF_RULES) else None,
    }
    table = Figure8Results(
        command=f"glassmoe reproduce figure8 {' '.join(names)}{option_words(options)}",
        protocol=protocol.identity(),
        judge={"name": judge.name, **judge.about},
        features=count,
        **origin(device),
    )

    saved = table

    def add(run: str, subject: Subject, readers: Sequence[Reader], k: int | None) -> None:
        """Rows of some layers or coders of a run, whose examples are gathered in one reading."""
        nonlocal table, saved
        said = ", ".join(reader.name for reader in readers)
        say(f"{run}, {said}" + (f", the greatest {k} of a token" if k else ""))
        gathering = replace(usual, keep=k)
        for examples in open_all_examples(
            subject, readers, run, gathering=gathering, data=data, again=again, context=context
        ):
            assert examples is not None  # it is no share
            entry = _explained(examples, run, k, judge, count, protocol, again)
            table = replace(table, entries=[*table.entries, entry])
            saved = table.save(results, f"figure8-{name or names[0]}")

    for run, subject, readers in opened:
        sparse = [reader for reader in readers if short_name(reader.name) not in DENSE]
        if sparse:
            add(run, subject, sparse, None)
    fires = [each.l0 for each in table.entries if short_name(each.reader) == "moe-x"]
    usual_keep = keep or (max(1, round(sum(fires) / len(fires))) if fires else CHECK)
    for run, subject, readers in opened:
        dense = [reader for reader in readers if short_name(reader.name) in DENSE]
        for k in dict.fromkeys((usual_keep, CHECK)) if dense else ():
            add(run, subject, dense, k)
    return saved


Opened = tuple[str, Subject, list[Reader]]
"""A run, its model, and its layers or coders."""


def _chosen(opened: list[Opened], coders: Sequence[str]) -> list[Opened]:
    """The same with only these of the coders; all without names. Layers of runs stay. ValueError for a coder that no
    run has."""
    readers = [reader for _, _, own in opened for reader in own if reader.config is not None]
    known = dict.fromkeys(short_name(reader.name) for reader in readers)
    for name in coders:
        require_coder(known, name)
    return [(run, subject, with_coders(own, coders)) for run, subject, own in opened]


def _explained(
    examples: LayerExamples,
    run: str,
    keep: int | None,
    judge: Judge,
    features: int,
    protocol: ExplanationProtocol,
    again: bool,
) -> Figure8Row:
    store, layer = examples.store, examples.layer
    chosen = choose_features(store, features, protocol.seed)
    kind = examples.subject.kind()
    explained = explain_features(store, kind, judge, chosen, examples.folder, protocol=protocol, again=again)
    name = Path(run).name + (f", k = {keep}" if keep else "")
    if layer.folder is not None:
        name = f"{Path(run).name}/{layer.name}"
    lines = {line.feature: line for line in explained.explanations}
    scored = [lines[feature] for feature in chosen if "detection" in lines[feature].scores]
    return Figure8Row(
        name=name,
        run=Path(run).name,
        keep=keep,
        corpus=examples.data.name,
        data_sha256=store.manifest["data_sha256"],
        reader=explained.reader,
        l0=explained.l0,
        read_tokens=explained.read_tokens,
        features=explained.features,
        silent=explained.silent,
        unexplained=explained.unexplained,
        scored=explained.scored,
        scores=explained.scores,
        control=explained.control,
        of=speaks_of(scored),
        best=best_explained(examples, scored),
    )


def _findings(rows: Sequence[Figure8Row]) -> list[str]:
    """The tables of kinds of explanations and of the best explained features."""
    kinds = [kind for kind in KINDS if any(row.of[kind].own.n for row in rows)]
    header = ["features", *(f"{kind}, {what}" for kind in kinds for what in ("number", "own", "shuffled"))]
    lines = []
    for row in rows:
        cells = [[row.of[kind].own.n, _mean(row.of[kind].own), _mean(row.of[kind].control)] for kind in kinds]
        lines.append([row.name, *(cell for part in cells for cell in part)])
    best = []
    for row in rows:
        for each in row.best:
            named = ["-" if each.expert is None else each.expert, each.feature, _cell(each.explanation)]
            scores = [each.balanced_accuracy, each.control, f"{each.fires:.2%}"]
            best.append([row.name, *named, *scores, f"`{_cell(each.where)}`"])
    return [
        "## Kinds of explanations",
        "Balanced accuracy of the features whose explanation is only a place in the row or the source of a document, "
        "and of the others. Where a layer's features follow the place, a lead in the table above is due to the place.",
        markdown_table(header, lines),
        "## The best explained features",
        f"As in Table 5 of MoE-X: the {BEST} features of each row with the highest score, one per explanation, without "
        "rules of place and source. `where`: the strongest place in the windows that scored it, tokens on which it "
        "fires between << and >>. `fires`: share of the tokens read.",
        markdown_table(
            ["features", "expert", "feature", "explanation", "balanced accuracy", "shuffled", "fires", "where"], best
        ),
    ]


def _cell(text: str) -> str:
    """A text in one line, without characters that would end a table cell or a piece of code."""
    return text.replace("`", "'").replace("|", "/").replace("\n", "\\n")


_OTHERS = (
    ("fuzzing", "balanced_accuracy", False),
    ("embedding", "auc", False),
    ("probability", "auc", False),
    ("probability", "auc", True),
)
"""Scorer, number, and whether of another feature's explanation, of the columns that not all judges have."""
_HEADER = (
    *("features", "L0", "scored", "silent", "balanced accuracy", "F1", "shuffled"),
    *("fuzzing", "AUC", "AUC of yes", "AUC of yes, shuffled"),
)


def _mean(score: MeanInterval | None) -> str:
    return "-" if score is None or score.mean is None else plus_minus(score.mean, score.half, 3)


def _tenths(detection: ScoreSummary) -> list[MeanInterval | None]:
    """Accuracy in each tenth of a feature's strength, and where it does not fire."""
    tenths: Sequence[MeanInterval | None] = detection.per_decile or [None] * 10
    return [*tenths, detection.silent_accuracy]


def _fewer(rows: Sequence[Figure8Row]) -> list[str]:
    """A sentence about features that were scored on too few windows."""
    parts = []
    for row in rows:
        own = row.scores.get("detection")
        if own and own.fewer:
            parts.append(f"{row.name}: {own.fewer} features ({own.examples:,} of {own.asked:,} windows)")
    return [f"Scored on fewer windows than asked for: {'; '.join(parts)}."] if parts else []


def _other_data(rows: Sequence[Figure8Row]) -> list[str]:
    """A sentence if rows were read on different data."""
    different = len({row.data_sha256 for row in rows}) > 1
    return ["The rows were not all read on the same data."] if different else []


def _draw(results: Figure8Results, path: Path) -> list[Path]:
    """Accuracy of detection in each tenth and where a feature does not fire, a line for each row, with 95%
    intervals."""
    rows = [row for row in results.entries if "detection" in row.scores]
    with drawing():
        from matplotlib.figure import Figure

        canvas = Figure(figsize=(7.2, 3.4), layout="constrained")
        panel = canvas.subplots()
        for at, row in enumerate(rows):
            points = _tenths(row.scores["detection"])
            places = [x + (at - (len(rows) - 1) / 2) * 0.06 for x in range(len(points))]
            means = [float("nan") if each is None or each.mean is None else each.mean for each in points]
            halves = [0.0 if each is None else each.half or 0.0 for each in points]
            colour, dashes = style(row.name, at)
            panel.errorbar(places[:10], means[:10], halves[:10], color=colour, ls=dashes, marker="o", label=row.name)
            panel.errorbar(places[10:], means[10:], halves[10:], color=colour, marker="s", ls="none")
        panel.set_xticks(range(11), [*map(str, range(1, 11)), "not"])
        panel.set_xlabel("tenth of the feature's strength, the strongest first; windows where it does not fire")
        panel.set_ylabel("accuracy of detection")
        corpus = ", ".join(sorted({row.corpus for row in results.entries}))
        panel.set_title(f"judge: {results.judge['name']}; read from {corpus}")
        canvas.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return write(canvas, path)
