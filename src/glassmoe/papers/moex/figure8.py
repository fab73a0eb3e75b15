"""`glassmoe reproduce figure8`: how well explanations tell where features fire, in each tenth of their strength and
where they do not fire, model beside model (MoE-X, Figure 8); and the features that are told best, with a place where
each fires (Table 5).

Activations of GELU and its like are hardly ever 0, so there would be no windows in which such a neuron does not fire.
As Paulo et al. 2024 do with neurons, the greatest k of a token are kept: k as many as MoE-X fires in the mean, and 32.

A feature that fires from some token of a row on is told well by a rule that says so, and means nothing; one that fires
in documents of one source is told without a look at a token. Features whose explanation is a rule of place or of source
are therefore counted apart from the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glassmoe.console import say
from glassmoe.device import describe, pick_device
from glassmoe.explaining.explained import choose_features, explain_features
from glassmoe.explaining.opening import LayerExamples, open_examples, open_layer
from glassmoe.explaining.results import FeatureExplanation, VerdictScore
from glassmoe.explaining.rules import parse
from glassmoe.explaining.scoring import mean_of
from glassmoe.explaining.trials import ExplanationProtocol, Judge
from glassmoe.explaining.windows import TokenText, with_marks
from glassmoe.inspect.readers import open_readers
from glassmoe.inspect.store import Gathering
from glassmoe.measure.encoder_map import require_plots
from glassmoe.measure.tables import table
from glassmoe.papers.mxd.uses import Row, save
from glassmoe.training.run import commit

from .canvas import drawing, style, write
from .tables import plus_minus

DENSE = ("gelu", "geglu", "solu", "switch", "neurons")
"""Readers whose features are hardly ever 0."""
CHECK = 32
"""The k that the neurons of delphi's article keep."""
KINDS = ("place", "source", "others")
"""What rules can speak of without looking at a token, and the others."""
BEST = 8
"""Features of a row that the table of findings shows."""
BEFORE, AFTER = 8, 2
"""Tokens around the strongest that are shown of a window."""
FEATURES = {"cpu": 300, "gpu": 1000}


def figure8(
    runs: Sequence[str],
    judge: Judge,
    *,
    layer: int | None = None,
    features: int = FEATURES["cpu"],
    keep: int | None = None,
    name: str | None = None,
    data: str | None = None,
    gathering: Gathering | None = None,
    protocol: ExplanationProtocol | None = None,
    results: Path = Path("results"),
    device: str = "auto",
    again: bool = False,
) -> dict[str, Any]:
    """Explain and score random features of everything at `runs` with one judge, and write `results/figure8-NAME.json`,
    `.md` and a figure, after each. `keep`: k of the layers that are not sparse, besides 32 (default: the mean L0 of the
    MoE-X among the runs, if one is). Interrupted, the same command goes on. ValueError for a user's mistake."""
    require_plots("matplotlib.figure", "Drawing figures")
    if "detection" not in judge.scorers:
        raise ValueError("figure8 shows the accuracy of detection; give --judge rules, embedding, or a language model")
    protocol, usual = protocol or ExplanationProtocol(), gathering or Gathering()
    found = [(run, name) for run in runs for name in _readers(run, layer, device)]
    header = {
        "suite": "figure8",
        "command": f"glassmoe reproduce figure8 {' '.join(Path(run).name for run in runs)} --judge {judge.name}",
        "commit": commit(),
        "hardware": describe(pick_device(device)),
        "protocol": vars(protocol),
        "judge": {"name": judge.name, **judge.about},
        "features": features,
    }
    rows: list[Row] = []

    def add(run: str, reader: str, kept: int | None) -> dict[str, Any]:
        say(f"{run}, {reader}" + (f", the greatest {kept} of a token" if kept else ""))
        settings = replace(usual, keep=kept)
        opened = open_layer(run, layer, coder=reader, device=device)
        one = open_examples(*opened, run, gathering=settings, data=data, again=again)
        rows.append(_explained(one, run, kept, judge, features, protocol, again))
        title = f"figure8-{name or Path(runs[0]).name}"
        return save(results, title, {**header, "rows": rows}, render_figure8, draw_figure8)

    for run, reader in found:
        if reader.rpartition("/")[2] not in DENSE:
            saved = add(run, reader, None)
    fires = [row["l0"] for row in rows if row["reader"].rpartition("/")[2] == "moe-x"]
    usual_keep = keep or (max(1, round(sum(fires) / len(fires))) if fires else CHECK)
    for run, reader in found:
        if reader.rpartition("/")[2] in DENSE:
            for kept in dict.fromkeys((usual_keep, CHECK)):
                saved = add(run, reader, kept)
    return saved


def _readers(run: str, layer: int | None, device: str) -> list[str]:
    """Names of what can be read there."""
    return list(open_readers(run, None if layer is None else [layer], own=False, device=device)[1])


def _explained(
    one: LayerExamples,
    run: str,
    kept: int | None,
    judge: Judge,
    features: int,
    protocol: ExplanationProtocol,
    again: bool,
) -> Row:
    chosen = choose_features(one.store, features, protocol.seed)
    made = explain_features(one.store, one.subject.kind(), judge, chosen, one.folder, protocol=protocol, again=again)
    keys = ("reader", "l0", "read_tokens", "features", "silent", "unexplained", "scored", "scores", "control")
    name = Path(run).name + (f", k = {kept}" if kept else "")
    if one.layer.folder is not None:
        name = f"{Path(run).name}/{one.layer.name}"
    about = {"name": name, "run": Path(run).name, "keep": kept, "corpus": one.data.name}
    lines = {line.feature: line for line in made.explanations}
    scored = [lines[feature] for feature in chosen if "detection" in lines[feature].scores]
    found = {"of": speaks_of(scored), "best": _best(one, scored)}
    values = made.to_dict()
    return {**about, "data_sha256": one.store.manifest["data_sha256"], **{key: values[key] for key in keys}, **found}


def _detection(line: FeatureExplanation, control: bool = False) -> float | None:
    """Balanced accuracy in detection of a feature's own explanation, or of the control."""
    score = (line.control if control else line.scores).get("detection")
    return score.balanced_accuracy if isinstance(score, VerdictScore) else None


def speaks_of(lines: Sequence[FeatureExplanation]) -> dict[str, dict[str, Any]]:
    """Detection's balanced accuracy, own and with another's explanation, of the features whose explanation is a rule
    of `place` in the row or of the document's `source`, and of the `others`: {"own", "control"}, each {"mean", "half",
    "n"}."""
    kinds = [_speaks_of(line) for line in lines]
    return {
        wanted: {
            name: mean_of(
                _detection(line, control) for line, kind in zip(lines, kinds, strict=True) if kind == wanted
            ).to_dict()
            for name, control in (("own", False), ("control", True))
        }
        for wanted in KINDS
    }


def _speaks_of(line: FeatureExplanation) -> str:
    rule = parse(line.explanation or "")
    if rule is None or (rule.first is None and rule.source is None):
        return "others"
    return "source" if rule.first is None else "place"


def _best(one: LayerExamples, lines: Sequence[FeatureExplanation]) -> list[dict[str, Any]]:
    """The features that detection scores highest, one an explanation, rules of place and source left out; each with
    its expert, where there are experts, and the place where it fires most strongly in the windows that scored it."""
    size = one.store.num_features // (one.store.manifest["num_experts"] or 1)
    text = TokenText(one.store, one.subject.kind())
    found: dict[str, dict[str, Any]] = {}
    for line in sorted(lines, key=lambda line: -(_detection(line) or 0.0)):
        if len(found) < BEST and _speaks_of(line) == "others" and line.explanation not in found:
            feature = line.feature
            found[str(line.explanation)] = {
                "expert": feature // size if 1 < size < one.store.num_features else None,
                "feature": feature,
                "explanation": line.explanation,
                "balanced_accuracy": _detection(line),
                "control": _detection(line, control=True),
                "fires": line.fires / one.store.manifest["read_tokens"],
                "where": _where(text, feature),
            }
    return list(found.values())


def _where(text: TokenText, feature: int) -> str:
    """Some tokens around the strongest of the windows that score a feature, those where it fires between << and >>."""
    windows = text.windows(text.store.scoring(feature))
    window, peak = divmod(int(windows.strengths_EL.argmax()), windows.strengths_EL.shape[1])
    shown = slice(max(0, peak - BEFORE), peak + AFTER + 1)
    marked = windows.marked(float(text.store.maxima_F[feature]))[window]
    return with_marks(windows.tokens(window)[shown], marked[shown].tolist())


def render_figure8(title: str, results: dict[str, Any]) -> str:
    """The Markdown page of the figure, made from the results alone."""
    rows, protocol = results["rows"], results["protocol"]
    lines, tenths = [], []
    for row in rows:
        own, control = row["scores"].get("detection"), row["control"].get("detection")
        counted = [f"{row['l0']:.1f}", f"{row['scored']} of {row['features']}", row["silent"]]
        lines.append([row["name"], *counted, *(_mean(own, key) for key in ("balanced_accuracy", "f1"))])
        lines[-1] += [_mean(control, "balanced_accuracy"), *(_mean(row["scores"].get(o), k) for o, k in _OTHERS)]
        accuracies = [*(own["per_decile"] if own else [None] * 10), own["not"] if own else None]
        tenths.append([row["name"], *(None if each is None else each["mean"] for each in accuracies)])
    kept = [index for index in range(len(_HEADER)) if any(line[index] != "-" for line in lines)]
    data = ", ".join(sorted({f"{row['corpus']} ({row['data_sha256'][:12]})" for row in rows}))
    parts = [
        f"# {title}",
        f"By `{results['command']}`; {results['hardware']}; commit {results['commit']}.",
        table([_HEADER[i] for i in kept], [[line[i] for i in kept] for line in lines]),
        f"Means over features drawn at random, silent ones left out, with half the 95% interval; judged by "
        f"{results['judge']['name']} on {protocol['per_decile']} windows of each tenth of a feature's strength and "
        f"{protocol['silent']} windows where it does not fire, of documents that did not explain it. `shuffled`: the "
        f"same with another feature's explanation. L0: features of a token. Of GELU, GEGLU, SoLU and Switch layers the "
        f"greatest k features of a token count. Read from {data}, not from RedPajama as in the paper; its explainer "
        f"and judge is a language model of 70B, so that its accuracies are not comparable.",
        *_fewer(rows),
        *results.get("notes", []),
        *_findings(rows),
        "## Accuracy in each tenth, the strongest first, and where the feature does not fire",
        table(["features", *map(str, range(1, 11)), "not"], tenths),
        f"![{title}](figures/{title}.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _findings(rows: Sequence[Row]) -> list[str]:
    """What explanations speak of, and the best of them."""
    kinds = [kind for kind in KINDS if any(row["of"][kind]["own"]["n"] for row in rows)]
    header = ["features", *(f"{kind}, {what}" for kind in kinds for what in ("number", "own", "shuffled"))]
    lines = []
    for row in rows:
        of = [row["of"][kind] for kind in kinds]
        cells = [[each["own"]["n"], _mean(each, "own"), _mean(each, "control")] for each in of]
        lines.append([row["name"], *(cell for part in cells for cell in part)])
    best = []
    for row in rows:
        for each in row["best"]:
            named = ["-" if each["expert"] is None else each["expert"], each["feature"], _cell(each["explanation"])]
            scores = [each["balanced_accuracy"], each["control"], f"{each['fires']:.2%}"]
            best.append([row["name"], *named, *scores, f"`{_cell(each['where'])}`"])
    return [
        "## What the explanations speak of",
        "Balanced accuracy of the features whose explanation is only a place in the row or the source of a document, "
        "and of the others. Where a layer's features follow the place, a lead in the table above is one of place.",
        table(header, lines),
        "## The features that are told best",
        f"As in Table 5 of MoE-X: the {BEST} of each row that detection scores highest, one an explanation, rules of "
        "place and source left out, each where it fires most strongly in the windows that scored it (between << and "
        ">>). `fires`: of the tokens read.",
        table(
            ["features", "expert", "feature", "explanation", "balanced accuracy", "shuffled", "fires", "where"], best
        ),
    ]


def _cell(text: str) -> str:
    """A text in one line, without what would end a cell of a table or a piece of code."""
    return text.replace("`", "'").replace("|", "/").replace("\n", "\\n")


_OTHERS = (("fuzzing", "balanced_accuracy"), ("embedding", "auc"))
_HEADER = ("features", "L0", "scored", "silent", "balanced accuracy", "F1", "shuffled", "fuzzing", "AUC")


def _mean(score: Any, key: str) -> str:
    if not score or score[key]["mean"] is None:
        return "-"
    return plus_minus(score[key]["mean"], score[key]["half"], 3)


def _fewer(rows: Sequence[Row]) -> list[str]:
    """What was scored on fewer windows than asked for."""
    parts = []
    for row in rows:
        own = row["scores"].get("detection")
        if own and own["fewer"]:
            parts.append(f"{row['name']}: {own['fewer']} features ({own['examples']:,} of {own['asked']:,} windows)")
    if len({row["data_sha256"] for row in rows}) > 1:
        parts.append("the rows were not all read on the same data")
    return [f"Scored on fewer windows than asked for: {'; '.join(parts)}."] if parts else []


def draw_figure8(results: dict[str, Any], path: Path) -> list[Path]:
    """Accuracy of detection in each tenth and where a feature does not fire, a line a row, with 95% intervals."""
    rows = [row for row in results["rows"] if "detection" in row["scores"]]
    with drawing():
        from matplotlib.figure import Figure

        canvas = Figure(figsize=(7.2, 3.4), layout="constrained")
        panel = canvas.subplots()
        for at, row in enumerate(rows):
            own = row["scores"]["detection"]
            points = [*own["per_decile"], own["not"]]
            places = [x + (at - (len(rows) - 1) / 2) * 0.06 for x in range(len(points))]
            means = [each["mean"] if each["mean"] is not None else float("nan") for each in points]
            halves = [each["half"] or 0.0 for each in points]
            colour, dashes = style(row["name"], at)
            panel.errorbar(places[:10], means[:10], halves[:10], color=colour, ls=dashes, marker="o", label=row["name"])
            panel.errorbar(places[10:], means[10:], halves[10:], color=colour, marker="s", ls="none")
        panel.set_xticks(range(11), [*map(str, range(1, 11)), "not"])
        panel.set_xlabel("tenth of the feature's strength, the strongest first; windows where it does not fire")
        panel.set_ylabel("accuracy of detection")
        corpus = ", ".join(sorted({row["corpus"] for row in results["rows"]}))
        panel.set_title(f"judge: {results['judge']['name']}; read from {corpus}")
        canvas.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return write(canvas, path)
