"""`glassmoe reproduce mxd-steering`: how much texts are about one thing, and how fluent they are, when one feature is
raised, coder beside coder, as in the Mixture of Decoders paper (Oldfield et al. 2025). Judged offline, and by language
models where there are some.

A row: `name` and `feature` (None for texts without a change); `agreement` and `fluency`, offline
(`measure.steering.specialisation`); with judges `judges` (model -> {"concept", "fluency"}, None where it has none),
`concept` and `fluency_judged`, the means over the judges, None unless all of them rated the texts, and `texts_judged`,
how many they saw.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from glassmoe.console import say
from glassmoe.explaining.chat import Chat, Counts
from glassmoe.explaining.ratings import rate_texts
from glassmoe.explaining.results import questions_of
from glassmoe.inspect.readers import Reader, open_readers
from glassmoe.inspect.sample import Sampling
from glassmoe.measure.encoder_map import require_plots
from glassmoe.measure.intervals import interval
from glassmoe.measure.steering import specialisation
from glassmoe.measure.tables import table
from glassmoe.model.subject import Subject
from glassmoe.papers.moex.canvas import COLOURS, drawing, write
from glassmoe.papers.moex.tables import plus_minus

from .uses import Row, header_of, opening, save

PROMPT = "Let's talk about "
STEERING = Sampling(32, samples=10, temperature=1.0, top_p=0.1, frequency_penalty=1.0)
FEATURES, AMOUNT = 100, 100.0
"""The paper's steering: texts, their length and sampling; the first features, and what is added to each."""
SHOWN = 4
"""Rows of a set of features whose texts the file has: those of all would fill it, these show what is judged."""
CHECK = ("The cat sat on the mat.", "A dog slept by the door.")
"""Texts that a judge rates before anything is written, to see that it is there."""
OFFLINE, JUDGED = ("agreement", "fluency"), ("concept", "fluency_judged")
AXES = {
    "agreement": "agreement of a feature's texts",
    "fluency": "fluency (mean probability)",
    "concept": "concept of a feature's texts, judged",
    "fluency_judged": "fluency, judged",
}


def steering(
    path: str,
    *,
    name: str | None = None,
    layers: Sequence[int] | None = None,
    features: int = FEATURES,
    amount: float = AMOUNT,
    prompt: str = PROMPT,
    sampling: Sampling = STEERING,
    own: bool = True,
    judges: Sequence[Chat] = (),
    results: Path = Path("results"),
    device: str = "auto",
) -> dict[str, Any]:
    """Raise each of the first `features` of everything at `path` by `amount`, have the texts judged offline and by
    each of `judges`, and write `results/mxd-steering-NAME.json`, `.md` and a figure, after each set of features.
    ValueError for a user's mistake, a judge that cannot be reached included, before anything is measured."""
    require_plots("matplotlib.figure", "Drawing figures")
    subject, readers = open_readers(path, layers, own=own, device=device)
    header = header_of("mxd-steering", path, subject, device)
    header |= {"amount": amount, "prompt": prompt, "sampling": vars(sampling)}
    if judges:
        header["command"] += f" --judge URL --judge-model {','.join(judge.endpoint.model for judge in judges)}"
    for judge in judges:
        # A wrong address or key shows now, and not after minutes of writing.
        rate_texts(judge, [CHECK])
        judge.counts = Counts(calls=judge.counts.calls)
    rows: list[Row] = []
    for each, reader in readers.items():
        say(f"{each}: {min(features, reader.layer.num_features)} features")
        found = _steered(subject, reader, features, amount, prompt, sampling)
        found = judged(judges, found) if judges else found
        rows += [
            {key: value for key, value in row.items() if key != "texts" or at < SHOWN} for at, row in enumerate(found)
        ]
        made = {**header, "rows": rows}
        if judges:
            made["judges"] = [judge.summary().to_dict() for judge in judges]
        saved = save(results, f"mxd-steering-{name or Path(path).name}", made, render_steering, draw_steering)
    return saved


def _steered(
    subject: Subject, reader: Reader, features: int, amount: float, prompt: str, sampling: Sampling
) -> list[Row]:
    numbers = range(min(features, reader.layer.num_features))
    found = specialisation(subject, reader.layer, reader.place, numbers, amount, prompt, sampling)
    return [{"name": reader.name, **row} for row in found]


def judged(judges: Sequence[Chat], rows: Sequence[Row]) -> list[Row]:
    """The rows with what the judges say of their `texts`. Empty texts are not shown, and of fewer than two nothing is
    asked, since one alone is about one thing."""
    texts = [[text for text in row["texts"] if text.strip()] for row in rows]
    asked = [at for at, each in enumerate(texts) if len(each) > 1]
    said = {}
    for judge in judges:
        found = rate_texts(judge, [texts[at] for at in asked])
        said[judge.endpoint.model] = dict(zip(asked, found, strict=True))
    made = []
    for at, row in enumerate(rows):
        ratings = {model: each.get(at) for model, each in said.items()}
        given = [rating for rating in ratings.values() if rating is not None]
        # A mean over other judges would differ by their strictness, not by the texts.
        means = map(statistics.fmean, zip(*given, strict=True)) if len(given) == len(ratings) else (None, None)
        made.append(
            {
                **row,
                "judges": {model: rating and rating._asdict() for model, rating in ratings.items()},
                **dict(zip(JUDGED, means, strict=True)),
                "texts_judged": len(texts[at]),
            }
        )
    return made


def render_steering(title: str, results: dict[str, Any]) -> str:
    """The Markdown page of steering, made from the results alone."""
    sampling = results["sampling"]
    protocol = (
        f"Each feature alone was raised by {results['amount']:g} at every token while {sampling['samples']} texts of "
        f"{sampling['tokens']} tokens were written after {results['prompt']!r} (temperature "
        f"{sampling['temperature']:g}, top-p {sampling['top_p']:g}, frequency penalty "
        f"{sampling['frequency_penalty']:g}). Means over features, with half the 95% interval."
    )
    offline = (
        "agreement is the mean cosine between the texts of a feature in what leaves the model's last block, less those "
        "of texts without a change; fluency the geometric mean probability of their tokens under the model as it is. "
        "Texts that repeat one token agree too: read agreement beside fluency."
    )
    plain = _table(OFFLINE, _lines(results, lambda row: row, OFFLINE))
    if results.get("judges"):
        parts = [*_judged(results, protocol), "## Offline", plain, f"Of the same texts, {offline}"]
    else:
        parts = [plain, f"{protocol} Judged offline, and not by language models as in the paper: {offline}"]
    parts = [f"# {title}", opening(results), *parts, *results.get("notes", []), f"![{title}](figures/{title}.png)"]
    return "\n\n".join(parts) + "\n"


def _judged(results: dict[str, Any], protocol: str) -> list[str]:
    """The judges' tables, who they are, and what became of the questions to them."""
    judges, words = results["judges"], ("concept", "fluency")
    models = [judge["model"] for judge in judges]
    several = len(models) > 1
    about = (
        f"Judged by {' and '.join(models)}. A judge sees the texts of one feature together and says, from 0 to 1, how "
        "much they share one concept and how fluent they are. "
        + ("The table has the means of the judges, over features that all of them rated. " if several else "")
        + "Where features lack a rating, n says how many have one."
    )
    parts = [
        _table(words, _lines(results, lambda row: row, JUDGED)),
        " ".join([protocol, about, *map(_told, judges), *_fewer(results)]),
    ]
    if several:
        each = [line for model in models for line in _lines(results, _by(model), words, f", {model}")]
        parts += ["## Judge by judge", _table(words, each)]
    return parts


def _by(model: str) -> Callable[[Row], Mapping[str, Any]]:
    return lambda row: row["judges"][model] or {}


def _told(judge: dict[str, Any]) -> str:
    counts = questions_of(judge)
    missing = sum(judge["failed"].values())
    reasons = ", ".join(f"{reason}: {count}" for reason, count in judge["failed"].items())
    return (
        f"{judge['model']} was asked {judge['asked']} times: {missing} without an answer"
        + (f" ({reasons})" if reasons else "")
        + f", {judge['malformed']} with one that could not be read."
        + "".join(f" What it answered now came to {cost}." for cost in (counts.cost_in_words() if counts else []))
    )


def _fewer(results: dict[str, Any]) -> list[str]:
    """What a judge did not see of the texts, where it did not see all."""
    samples = results["sampling"]["samples"]
    seen = [row["texts_judged"] for row in results["rows"]]
    few, none = sum(1 < count < samples for count in seen), sum(count < 2 for count in seen)
    if not few + none:
        return []
    left_out = f", and {none} not at all, with fewer than two left" if none else ""
    return [f"Some texts were empty: of {len(seen)} sets {few} were judged by fewer than {samples} texts{left_out}."]


def _lines(
    results: dict[str, Any], read: Callable[[Row], Mapping[str, Any]], pair: tuple[str, str], by: str = ""
) -> list[list[Any]]:
    """A table's line for each set of features: n, the means of two numbers over features that have both, and the
    numbers of the texts without a change."""
    lines = []
    for name in dict.fromkeys(row["name"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["name"] == name]
        (before,) = ([read(row).get(key) for key in pair] for row in rows if row["feature"] is None)
        own = [[read(row).get(key) for key in pair] for row in rows if row["feature"] is not None]
        whole = [values for values in own if None not in values]
        means: list[Any] = [plus_minus(*interval(values), 3) for values in zip(*whole, strict=True)]
        n = len(own) if len(whole) == len(own) else f"{len(whole)} of {len(own)}"
        lines.append([name + by, n, *(means or (None, None)), *before])
    return lines


def _table(words: tuple[str, str], lines: list[list[Any]]) -> str:
    return table(["features", "n", *words, *(f"{word} without" for word in words)], lines)


def draw_steering(results: dict[str, Any], path: Path) -> list[Path]:
    """Every feature as a point, by its judges where it has some; of each set of features the mean and the ellipse of
    one standard deviation."""
    import numpy as np

    own = [row for row in results["rows"] if row["feature"] is not None]
    pair = JUDGED if any(row.get(JUDGED[0]) is not None for row in own) else OFFLINE
    with drawing():
        from matplotlib.figure import Figure
        from matplotlib.patches import Ellipse

        canvas = Figure(figsize=(5.0, 3.6), layout="constrained")
        panel = canvas.subplots()
        for at, name in enumerate(dict.fromkeys(row["name"] for row in own)):
            found = [[row[key] for key in pair] for row in own if row["name"] == name]
            points = np.array([values for values in found if None not in values])
            if len(points) < 3:
                continue
            colour = COLOURS[at % len(COLOURS)]
            spread, axes = np.linalg.eigh(np.cov(points.T))
            width, height = 2 * np.sqrt(np.maximum(spread[::-1], 0))
            angle = float(np.degrees(np.arctan2(axes[1, -1], axes[0, -1])))
            label = name if len(points) == len(found) else f"{name} ({len(points)} of {len(found)})"
            panel.plot(*points.T, ".", color=colour, markersize=2, alpha=0.4)
            panel.plot(*points.mean(0), "o", color=colour, label=label)
            panel.add_patch(Ellipse(tuple(points.mean(0)), width, height, angle=angle, fill=False, color=colour))
        panel.set_xlabel(AXES[pair[0]])
        panel.set_ylabel(AXES[pair[1]])
        if panel.get_legend_handles_labels()[0]:
            panel.legend()
        return write(canvas, path)
