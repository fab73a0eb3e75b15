"""`glassmoe reproduce mxd-frontier`: accuracy against sparsity of the coders that stand for an MLP, as in the Mixture
of Decoders paper (Oldfield et al. 2025, arXiv 2505.21364): one sweep a seed, what the model loses by each coder, and
whether the mixture is ahead at every k.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from glassmoe.coders.fit import evaluate_fidelity, fit
from glassmoe.coders.sweep import sweep
from glassmoe.console import say
from glassmoe.data.corpus import Corpus
from glassmoe.device import describe, pick_device
from glassmoe.measure.encoder_map import require_plots
from glassmoe.report.results import read_results
from glassmoe.report.tables import table
from glassmoe.training.checkpoint import write_text
from glassmoe.training.run import commit

from .canvas import BLUE, GREEN, VERMILLION, drawing, write
from .claims import interval
from .tables import dumps

CODERS = ("mxd", "transcoder", "skip-transcoder")
SHOWN = {"normalised_mse": "normalised MSE", "loss_increase": "loss increase (nats a token)"}
COLOURS = {"mxd": VERMILLION, "transcoder": BLUE, "skip-transcoder": GREEN}
FACTS = ("suite", "model", "layer", "data_sha256", "source_sha256")
"""What all rows of a file share."""

LEGEND = (
    "Means over seeds, with half the 95% interval where there are several. Normalised MSE is the mean squared error as "
    "a share of the target's variance; increase is that of the loss with the coder in the MLP's place, in nats a "
    "token; recovered is the share of the loss between zeros and the MLP. mxd and transcoder have the same "
    "parameters, up to one expert; the skip transcoder has a map of the stream besides, as in the paper."
)

Row = dict[str, Any]


def frontier(
    model: str,
    layer: int,
    *,
    data: str | None,
    ks: Sequence[int],
    seeds: Sequence[int],
    rows: int = 512,
    out: Path = Path("runs/reproduce"),
    results: Path = Path("results"),
    **settings: Any,
) -> dict[str, Any]:
    """Fit and measure the three coders of `layer` of `model` at every k and seed, and write
    `results/mxd-frontier-MODEL-layerN.json`, `.md` and a figure. `settings`: those of `coders.sweep.sweep`. Sweeps that
    are finished are used again, a stopped one goes on; the file is written after each seed. ValueError for a user's
    mistake, before anything is fitted."""
    require_plots("matplotlib.figure", "Drawing figures")
    name = f"mxd-frontier-{Path(model).name}-layer{layer}"
    folder = out / name
    found: dict[str, Any] = {}
    given = {name: value for name, value in settings.items() if value is not None and name != "device"}
    options = "".join(f" --{option.replace('_', '-')} {value}" for option, value in given.items())
    options = f" --k {','.join(map(str, ks))} --seeds {','.join(map(str, seeds))} --rows {rows}{options}"
    for seed in seeds:
        config = sweep(model, layers=[layer], coders=CODERS, ks=ks, data=data, out=folder, seed=seed, **settings)
        say(f"seed {seed}: {folder / f'seed{seed}'}")
        fit(config, folder / f"seed{seed}")
        measured = evaluate_fidelity(folder / f"seed{seed}", rows=rows)
        found = _save(results / name, _header(model, layer, config, measured, options), _rows(seed, config, measured))
    return found


def _header(model: str, layer: int, config: Any, measured: dict[str, dict[str, Any]], options: str) -> dict[str, Any]:
    corpus = Corpus.open(config.data.path, config.data.tokens)
    return {
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


def _rows(seed: int, config: Any, measured: dict[str, dict[str, Any]]) -> list[Row]:
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
    place = {name: at for at, name in enumerate(CODERS)}
    kept = {(row["k"], place[row["name"]], row["seed"]): row for row in [*old["rows"], *rows]}
    merged = {**old, **header, "rows": [kept[key] for key in sorted(kept)]}
    merged["claims"] = claims(merged["rows"])
    path.parent.mkdir(parents=True, exist_ok=True)
    merged["figures"] = [f"figures/{path.name}.png"]
    (path.parent / "figures").mkdir(exist_ok=True)
    draw(merged, path.parent / "figures" / path.name)
    write_text(json_path, dumps(merged))
    write_text(path.with_name(path.name + ".md"), render(path.name, merged))
    merged["files"] = [str(path.with_name(path.name + ending)) for ending in (".json", ".md")]
    return merged


def claims(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Is mxd ahead of its rivals at every k, in every figure of `SHOWN`? The mean difference over the seeds that both
    have, half the 95% interval (None for one seed), and yes, no or undecided by it. The paper says yes to all."""
    found = []
    for k, rival, figure in product(sorted({row["k"] for row in rows}), CODERS[1:], SHOWN):
        ours, theirs = (
            {row["seed"]: row[figure] for row in rows if (row["name"], row["k"]) == (name, k)}
            for name in ("mxd", rival)
        )
        differences = [ours[seed] - theirs[seed] for seed in sorted({*ours} & {*theirs})]
        if differences:
            mean, half = interval(differences)
            decided = half is not None and abs(mean) > half
            answer = ("yes" if mean < 0 else "no") if decided else "undecided"
            facts = {"k": k, "rival": rival, "figure": figure, "mean": mean, "half": half, "n": len(differences)}
            found.append({**facts, "answer": answer})
    return found


def render(title: str, results: dict[str, Any]) -> str:
    """The Markdown page of results, made from them alone."""
    rows: list[Row] = results["rows"]
    lines = []
    for k in sorted({row["k"] for row in rows}):
        for name in CODERS:
            group = [row for row in rows if (row["name"], row["k"]) == (name, k)]
            if group:
                lines.append(_line(name, k, group))
    header = ["coder", "k", "seeds", "features", "parameters", "normalised MSE", "increase", "recovered", "dead"]
    asked = [
        [
            f"mxd is ahead of {each['rival']} at k = {each['k']} in {SHOWN[each['figure']]}",
            each["answer"],
            f"{each['mean']:+.4f}" + ("" if each["half"] is None else f" +- {each['half']:.4f}"),
            each["n"],
            "yes",
        ]
        for each in results["claims"]
    ]
    parts = [
        f"# {title}",
        _opening(results),
        table(header, lines),
        LEGEND,
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


def _line(name: str, k: int, group: Sequence[Row]) -> list[Any]:
    def shown(figure: str, places: int = 4) -> str | None:
        values = [row[figure] for row in group]
        if None in values:
            return None
        mean, half = interval(values)
        return f"{mean:.{places}f}" + ("" if half is None else f" +- {half:.{places}f}")

    facts = [f"{group[0]['features']:,}", f"{group[0]['parameters']:,}"]
    figures = [shown("normalised_mse"), shown("loss_increase"), shown("loss_recovered", 3), shown("dead", 0)]
    return [name, k, len(group), *facts, *figures]


def draw(results: dict[str, Any], path: Path) -> list[Path]:
    """The frontier: both figures of `SHOWN` against L0, a line a coder, bars of half the 95% interval."""
    with drawing():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 2.9), layout="constrained")
        panels = figure.subplots(1, len(SHOWN), squeeze=False)[0]
        for panel, (key, words) in zip(panels, SHOWN.items(), strict=True):
            for name in CODERS:
                rows = [row for row in results["rows"] if row["name"] == name]
                ks = sorted({row["k"] for row in rows})
                points = [interval([row[key] for row in rows if row["k"] == k]) for k in ks]
                means, halves = [mean for mean, _ in points], [half or 0.0 for _, half in points]
                panel.errorbar(ks, means, halves, label=name, color=COLOURS[name], marker="o", capsize=2)
            panel.set_xscale("log", base=2)
            panel.set_xlabel("features a token (k)")
            panel.set_title(words)
            every = sorted({row["k"] for row in results["rows"]})
            panel.set_xticks(every, [str(k) for k in every])
            panel.minorticks_off()
        panels[0].legend()
        return write(figure, path)
