"""`glassmoe reproduce mxd-frontier`: accuracy against sparsity of the coders that stand for an MLP, as in the Mixture
of Decoders paper (Oldfield et al. 2025, arXiv 2505.21364): one sweep a seed, what the model loses by each coder, for
models of chess what the features tell of the board, and whether the mixture is ahead at every k.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from glassmoe.atomic import alone_in, write_text
from glassmoe.chess.board_evaluation import evaluate_boards
from glassmoe.coders.configuration import SweepConfig
from glassmoe.coders.fit import fit
from glassmoe.coders.sweep import sweep
from glassmoe.coders.task import corpus_for
from glassmoe.console import say
from glassmoe.data.corpus import Corpus
from glassmoe.device import describe, pick_device
from glassmoe.inspect.readers import open_coders
from glassmoe.measure.encoder_map import require_plots
from glassmoe.measure.fidelity import evaluate_fidelity
from glassmoe.measure.intervals import interval
from glassmoe.measure.results import read_results
from glassmoe.measure.tables import table
from glassmoe.model.subject import load_subject
from glassmoe.papers.moex.canvas import BLUE, GREEN, GREY, ORANGE, VERMILLION, drawing, write
from glassmoe.papers.moex.tables import dumps, plus_minus
from glassmoe.training.run import commit

DEFAULT = ("mxd", "mxd-one", "transcoder", "skip-transcoder")
RIVALS = DEFAULT[2:]


class Figure(NamedTuple):
    """A figure of the rows: what it is called, and whether less of it is better."""

    words: str
    less: bool


FIDELITY = {
    "normalised_mse": Figure("normalised MSE", True),
    "loss_increase": Figure("loss increase (nats a token)", True),
}
BOARDS = {
    "held_out_coverage": Figure("held-out coverage", False),
    "reconstruction": Figure("reconstruction", False),
}
STYLES = {
    "mxd": (VERMILLION, "-"),
    "mxd-one": (VERMILLION, "--"),
    "mxd-relu": (ORANGE, "-"),
    "mxd-gelu": (ORANGE, "--"),
    "mxd-glu": (ORANGE, ":"),
    "transcoder": (BLUE, "-"),
    "skip-transcoder": (GREEN, "-"),
}
FACTS = ("suite", "model", "layer", "data_sha256", "source_sha256")
"""What all rows of a file share."""

LEGEND = (
    "Means over seeds, with half the 95% interval where there are several. Normalised MSE is the mean squared error as "
    "a share of the target's variance; increase is that of the loss with the coder in the MLP's place, in nats a "
    "token; recovered is the share of the loss between zeros and the MLP. Every mxd and the transcoder have the same "
    "parameters, up to one expert; the skip transcoder has a map of the stream besides, as in the paper. mxd starts "
    "as in the paper, with experts around 0, mxd-one with all experts as one MLP. mxd-relu, mxd-gelu and mxd-glu have "
    "that hidden layer instead of the model's own."
)
BOARDS_LEGEND = "Coverage and reconstruction are those of the features on {games} games, chosen on as many others."

Row = dict[str, Any]


def frontier(
    model: str,
    layer: int,
    *,
    data: str | None,
    ks: Sequence[int],
    seeds: Sequence[int],
    coders: Sequence[str] = DEFAULT,
    rows: int = 512,
    games: int = 0,
    out: Path = Path("runs/reproduce"),
    results: Path = Path("results"),
    **settings: Any,
) -> dict[str, Any]:
    """Fit and measure `coders` of `layer` of `model` at every k and seed, and add them to
    `results/mxd-frontier-MODEL-layerN.json`, `.md` and a figure. `games`: of a model of chess, measure also what
    features tell of the boards of so many games. `settings`: those of `coders.sweep.sweep`. Sweeps that are finished
    are used again, a stopped one goes on; the file is written after each seed. ValueError for a user's mistake, before
    anything is fitted."""
    require_plots("matplotlib.figure", "Drawing figures")
    name = f"mxd-frontier-{Path(model).name}-layer{layer}"
    found: dict[str, Any] = {}
    given = {"k": ",".join(map(str, ks)), "seeds": ",".join(map(str, seeds)), "coders": ",".join(coders), "rows": rows}
    given |= {"games": games or None, **settings, "device": None}
    options = "".join(f" --{option.replace('_', '-')} {value}" for option, value in given.items() if value is not None)
    subject = load_subject(model, settings.get("device", "auto"))
    for seed in seeds:
        folder = out / name / "+".join(coders) / f"seed{seed}"
        config = sweep(model, layers=[layer], coders=coders, ks=ks, data=data, out=out / name, seed=seed, **settings)
        say(f"seed {seed}: {folder}")
        fit(config, folder)
        measured = evaluate_fidelity(folder, rows=rows)
        corpus = corpus_for(model, config.data.path, subject)
        if games:
            _measure_boards(measured, folder, corpus, games, settings.get("device", "auto"))
        header = {
            "suite": "mxd-frontier",
            "model": Path(model).name,
            "layer": layer,
            "command": f"glassmoe reproduce mxd-frontier --model {Path(model).name} --layer {layer} "
            f"--data.path DATA{options}",
            "commit": commit(),
            "data_sha256": corpus.fingerprint,
            "source_sha256": next(iter(measured.values()))["source_sha256"],
            "hardware": describe(pick_device(config.train.device)),
        }
        with alone_in(results):
            found = _save(results / name, header, _rows(seed, config, measured))
    return found


def _measure_boards(measured: dict[str, dict[str, Any]], folder: Path, corpus: Corpus, games: int, device: str) -> None:
    """Add to every coder's figures what its features tell of the board."""
    subject, readers = open_coders(folder, device=device)
    measure = partial(evaluate_boards, subject.model, corpus, games=games, brief=True)
    for name, reader in readers.items():
        (found,) = measure(layers=[reader.number], coder=reader.layer, site=reader.place.site)["layers"]
        measured[name] |= {"games": games, **{figure: found[figure] for figure in BOARDS}}


def _rows(seed: int, config: SweepConfig, measured: dict[str, dict[str, Any]]) -> list[Row]:
    length = int(config.data.rows.split(":")[1]) - 1
    fitted = {"tokens_fitted": config.train.steps * config.train.batch_rows * length, "steps": config.train.steps}
    by_folder = config.fits()
    return [
        {"name": by_folder[folder].coder.label, "seed": seed, **fitted, "lr": config.optimizer.lr, **values}
        for folder, values in measured.items()
    ]


def _save(path: Path, header: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """Add rows to a results file, one for each name, k and seed, and write its page and figure. ValueError when the
    file holds those of another model, layer or data."""
    json_path = path.with_name(path.name + ".json")
    old = read_results(json_path, *FACTS, "rows") if json_path.exists() else {"rows": []}
    for fact in FACTS:
        if old.get(fact, header[fact]) != header[fact]:
            raise ValueError(
                f"{json_path} holds results with {fact} {old[fact]}, these have {header[fact]}; give another --results"
            )
    place = {name: at for at, name in enumerate(STYLES)}
    kept = {
        (row["k"], place.get(row["name"], len(place)), row["name"], row["seed"]): row for row in [*old["rows"], *rows]
    }
    merged = {**old, **header, "rows": [kept[key] for key in sorted(kept)]}
    merged["claims"] = claims(merged["rows"])
    merged["figures"] = [f"figures/{path.name}.png"]
    (path.parent / "figures").mkdir(exist_ok=True)
    draw(merged, path.parent / "figures" / path.name)
    write_text(json_path, dumps(merged))
    write_text(path.with_name(path.name + ".md"), render(path.name, merged))
    merged["files"] = [str(path.with_name(path.name + ending)) for ending in (".json", ".md")]
    return merged


def shown(rows: Sequence[Row]) -> dict[str, Figure]:
    """The figures that these rows have."""
    return {**FIDELITY, **(BOARDS if any("reconstruction" in row for row in rows) else {})}


def claims(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Is a mixture of decoders ahead of the transcoders at every k, in every figure? Of `mxd` as the paper starts it,
    and of `mxd-one`: the mean difference over the seeds that both have, half the 95% interval (None for one seed), and
    yes, no or undecided by it. The paper says yes to all (of boards it says nothing)."""
    found = []
    ks = sorted({row["k"] for row in rows})
    for k, name, rival, (figure, (_, less)) in product(ks, DEFAULT[:2], RIVALS, shown(rows).items()):
        ours, theirs = (
            {row["seed"]: row[figure] for row in rows if (row["name"], row["k"]) == (each, k) and figure in row}
            for each in (name, rival)
        )
        differences = [ours[seed] - theirs[seed] for seed in sorted({*ours} & {*theirs})]
        if differences:
            mean, half = interval(differences)
            decided = half is not None and abs(mean) > half
            answer = ("yes" if (mean < 0) == less else "no") if decided else "undecided"
            facts = {"k": k, "name": name, "rival": rival, "figure": figure, "mean": mean, "half": half}
            found.append({**facts, "n": len(differences), "answer": answer})
    return found


def render(title: str, results: dict[str, Any]) -> str:
    """The Markdown page of results, made from them alone."""
    rows: list[Row] = results["rows"]
    boards = [name for name in BOARDS if name in shown(rows)]
    lines = [
        _line(name, k, [row for row in rows if (row["name"], row["k"]) == (name, k)], boards)
        for k, name in dict.fromkeys((row["k"], row["name"]) for row in rows)
    ]
    header = ["coder", "k", "seeds", "features", "parameters", "normalised MSE", "increase", "recovered", "dead"]
    header += [BOARDS[name].words for name in boards]
    asked = [
        [
            f"{each['name']} is ahead of {each['rival']} at k = {each['k']} in {shown(rows)[each['figure']].words}",
            each["answer"],
            plus_minus(each["mean"], each["half"], 4, "+"),
            each["n"],
            "-" if each["figure"] in BOARDS else "yes",
        ]
        for each in results["claims"]
    ]
    parts = [
        f"# {title}",
        _opening(results),
        table(header, lines),
        LEGEND,
        *([BOARDS_LEGEND.format(games=max(row.get("games", 0) for row in rows))] if boards else []),
        *results.get("notes", []),
        "## What the paper claims",
        "Yes or no where the 95% interval of the difference within seeds decides.",
        table(["claim", "here", "difference", "n", "paper"], asked),
        f"![{title}](figures/{title}.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _opening(results: dict[str, Any]) -> str:
    first = results["rows"][0]
    return (
        f"Layer {results['layer']} of {results['model']} (weights {results['source_sha256'][:12]}), by "
        f"`{results['command']}`. Data {results['data_sha256'][:12]}; {results['hardware']}; "
        f"commit {results['commit']}. Each coder was fitted to {first['tokens_fitted'] / 1e6:.2f}M tokens in "
        f"{first['steps']:,} steps at a peak learning rate of {first['lr']:.1e}. The model's own loss on the held-out "
        f"text is {first['loss']:.4f} nats a token; with zeros in place of the MLP's output {first['loss_zero']:.4f}."
    )


def _line(name: str, k: int, group: Sequence[Row], boards: Sequence[str]) -> list[Any]:
    def words(figure: str, places: int = 4) -> str | None:
        values = [row[figure] for row in group if row.get(figure) is not None]
        if len(values) < len(group):
            return None
        mean, half = interval(values)
        return plus_minus(mean, half, places)

    facts = [f"{group[0]['features']:,}", f"{group[0]['parameters']:,}"]
    figures = [words("normalised_mse"), words("loss_increase"), words("loss_recovered", 3), words("dead", 0)]
    return [name, k, len(group), *facts, *figures, *(words(figure) for figure in boards)]


def draw(results: dict[str, Any], path: Path) -> list[Path]:
    """The frontier: every figure against k, a line a coder, bars of half the 95% interval."""
    rows: list[Row] = results["rows"]
    figures, every = shown(rows), sorted({row["k"] for row in rows})
    with drawing():
        from matplotlib.figure import Figure as Canvas

        canvas = Canvas(figsize=(7.2, 2.9 * len(figures) / 2), layout="constrained")
        panels = canvas.subplots(len(figures) // 2, 2, squeeze=False).flat
        for panel, (key, (words, _)) in zip(panels, figures.items(), strict=True):
            for name in dict.fromkeys(row["name"] for row in rows):
                own = [row for row in rows if row["name"] == name and key in row]
                ks = sorted({row["k"] for row in own})
                points = [interval([row[key] for row in own if row["k"] == k]) for k in ks]
                means, halves = [mean for mean, _ in points], [half or 0.0 for _, half in points]
                colour, dashes = STYLES.get(name, (GREY, "-"))
                panel.errorbar(ks, means, halves, label=name, color=colour, linestyle=dashes, marker="o", capsize=2)
            panel.set_xscale("log", base=2)
            panel.set_xlabel("features a token (k)")
            panel.set_title(words)
            panel.set_xticks(every, [str(k) for k in every])
            panel.minorticks_off()
        canvas.axes[0].legend()
        return write(canvas, path)
