"""The model card of an exported run: its data, its training, its measures, from the run's files alone.

A measure of another training step than that of the exported weights is left out, and the card says how many were.
Paths of the machine are not shown, only the names of files and folders."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Any

import yaml

from glassmoe.checksums import read_json
from glassmoe.chess.board_results import BoardsResult
from glassmoe.config import RunConfig
from glassmoe.data.tokens import TEXT, TokenKind
from glassmoe.measure.perplexity import PerplexityResult
from glassmoe.measure.saved import SavedMeasure, is_of_run, read_measure
from glassmoe.measure.text_perplexity import TextPerplexity
from glassmoe.model.families import family_of
from glassmoe.model.replacing import listed
from glassmoe.model.swapping import layer_kind, own_layers, path_of
from glassmoe.model.upcycled import active_parameters
from glassmoe.results import markdown_table
from glassmoe.training.checkpoint import latest_step
from glassmoe.training.records import read_start, seen_before
from glassmoe.training.tracking import by_number, read_metrics

PPL = "ppl-"


def write_card(model: Any, kind: TokenKind, run: Path, config: RunConfig | None, licence: str) -> str:
    """The card's Markdown. `run`: where the model lies; `config`: that of its run, None for a folder that has none,
    whose training is then left out. `licence`: what its field says."""
    layers, name, numbers = own_layers(model), layer_kind(model), None
    if not hasattr(model, "feed_forwards"):
        numbers = model.config.glassmoe["layers"]
    first = min(layers)
    world = "text" if kind.name == TEXT else "chess"
    mixture = ["mixture-of-experts"] if layers[first].num_experts > 1 else []
    tags = ", ".join(["glassmoe", "interpretability", world, *mixture])
    start = f"Every {'document' if kind.name == TEXT else 'game'} begins with `{kind.start_token}`"
    what = "A glassmoe decoder" if numbers is None else f"A `{family_of(model.config)}` model"
    which = (
        "Its feed-forward layers are" if numbers is None else f"Its MLPs of layers {listed(numbers)} were replaced by"
    )
    about = (
        f"{what} that reads and writes {kind.about}. {which} `{name}`: each "
        "has `features(x)`, which says which features fired and how strongly, and `write(features)`, which says what "
        f"they add to the residual stream. {start}, id {kind.start}, which the tokenizer does not add by itself."
    )
    if numbers is None:
        layer, opened = "model.feed_forwards()[0]", "import glassmoe.model"
    else:
        path = path_of(model.config.glassmoe, first)
        layer, opened = f'model.get_submodule("{path}").layer', 'glassmoe.load("FOLDER")'
    code = (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)\n'
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        f"x = ...  # what enters layer {first}'s feed-forward layer, (tokens, width)\n"
        f"layer = {layer}\nfeatures = layer.features(x)\n```\n\n"
        f"The folder carries the model's code; with glassmoe installed, `{opened}` takes its place."
    )
    about_card = {"library_name": "transformers", "pipeline_tag": "text-generation", "license": licence}
    # A licence may hold anything: only the writer of YAML knows what to quote.
    header = yaml.safe_dump(about_card, sort_keys=False, allow_unicode=True, width=1000)
    parts = [
        f"---\n{header}tags: [{tags}]\n---",
        f"# {name} {world} model",
        about,
        code,
    ]
    if config is None:
        parts.append("What it was trained on was not known where it was exported.")
    else:
        parts += _training(model, run, config)
        parts += _measures(run)
    return "\n\n".join(parts) + "\n"


def _training(model: Any, run: Path, config: RunConfig) -> list[str]:
    lines, environment = read_metrics(run / "metrics.jsonl"), _environment(run)
    last, before, receipt = lines[-1] if lines else {}, seen_before(run), read_start(run)
    # A run that was stopped between two lines of metrics has done more steps than its last line says.
    steps = latest_step(run) or last.get("step", 0)
    done = steps / last["step"] if last else 0
    own = round(done * last.get("tokens", 0))
    data = "synthetic games" if config.data.path is None else PurePath(config.data.path).name
    facts: list[list[Any]] = [
        ["data", f"{data}, as {config.data.rows}"],
        ["sha256 of the data", environment.get("data_sha256")],
        ["steps", f"{steps:,} of {config.train.steps:,}"],
        ["tokens", f"{own + before['source_tokens']:,}"],
        ["training FLOPs", f"{done * last.get('flops', 0) + before['source_flops']:.3g}"],
        ["parameters", f"{model.num_parameters():,}"],
        ["active parameters", f"{active_parameters(model):,}"],
        ["optimizer", config.optimizer.name],
        ["seed", config.seed],
        ["precision", environment.get("compute_dtype")],
        ["hardware", environment.get("hardware")],
        ["glassmoe", f"{environment.get('glassmoe')}, commit {environment.get('commit')}"],
    ]
    if receipt is not None:
        facts.insert(4, ["of these in the model it started from", f"{before['source_tokens']:,}"])
    losses = [line for line in lines if "valid_loss" in line]
    if losses:
        facts.append(
            ["validation loss (nats a token)", f"{losses[-1]['valid_loss']:.4f} at step {losses[-1]['step']:,}"]
        )
    shown = [[name, value] for name, value in facts if value is not None]
    parts = ["## Training", markdown_table(["what", "value"], shown)]
    if environment.get("command"):
        parts.append(f"Made by\n\n```\n{_command(environment['command'])}\n```")
    layers = next((line["layers"] for line in reversed(lines) if "layers" in line), None)
    if layers:
        rows = [
            [at, f"{one['l0']:.1f}", f"{one['alive']:.1%}", _percent(one.get("activity")), _load(one.get("load"))]
            for at, one in by_number(layers).items()
        ]
        parts += [
            "## Sparsity",
            "On a few rows of the last logged step: features above 0 per token, the share of features above 0 on any "
            "of these tokens; in a mixture the share of the chosen experts' units above 0, and the least and most "
            "that an expert was chosen.",
            markdown_table(["layer", "L0", "alive", "activity", "load"], rows),
        ]
    return parts


def _measures(run: Path) -> list[str]:
    step = latest_step(run)
    measures: dict[str, SavedMeasure] = {}
    older = 0
    for path in sorted((run / "measures").glob("*.json")):
        record = read_measure(run, path.stem)
        assert record is not None
        if record.step == step and (path.stem != "ppl" or is_of_run(record, run)):
            measures[path.stem] = record
        else:
            older += 1
    parts = []
    if "ppl" in measures:
        ppl = measures["ppl"].result(PerplexityResult)
        bits = {"byte": ppl.bits_per_byte, "character": ppl.bits_per_character}
        figures = [_shown(ppl.loss, "{:.4f} nats a token"), _shown(ppl.perplexity, "perplexity {:.3f}")]
        figures += [_shown(value, f"{{:.4f}} bits a {per}") for per, value in bits.items() if value is not None][:1]
        known = ", ".join(figure for figure in figures if figure is not None)
        if known:
            tokens = _shown(ppl.tokens, " {:,} tokens of") or ""
            parts += ["## Held-out loss", f"{known}, on{tokens} the validation split."]
    texts = {
        name.removeprefix(PPL): record.result(TextPerplexity)
        for name, record in measures.items()
        if name.startswith(PPL)
    }
    if texts:
        parts += ["## Perplexity", *_perplexities(texts)]
    if "boards" in measures:
        parts += [
            "## What single features tell of the board",
            *_boards(measures["boards"].result(BoardsResult)),
        ]
    other = [name for name in measures if name not in ("ppl", "boards") and not name.startswith(PPL)]
    if other:
        parts.append(f"Also measured, and not shown here: {', '.join(other)}.")
    if older:
        parts.append(f"{older} measures of other training steps than that of these weights were left out.")
    return parts


def _perplexities(texts: dict[str, TextPerplexity]) -> list[str]:
    lines, read = [], []
    for name, one in texts.items():
        last = one.last_word
        figures = [_shown(one.perplexity, "{:.2f}"), _shown(one.word_perplexity, "{:.1f}")]
        figures += [_shown(one.bits_per_byte, "{:.4f}"), _shown(one.tokens, "{:,}")]
        ends = None
        if last is not None and last.perplexity is not None:
            ends = f"{last.perplexity:.1f}{_shown(last.accuracy, ' ({:.1%})') or ''}"
        lines.append([name, *figures, one.window, one.stride, ends])
        about = [one.source, one.sha256 and f"sha256 {one.sha256[:16]}", one.about]
        read.append(f"{name}: {', '.join(each for each in about if each) or 'not known'}")
    header = ["text", "per token", "per word", "bits per byte", "tokens", "window", "stride", "last word (accuracy)"]
    return [
        markdown_table(header, lines),
        "; ".join(read) + ". Windows never span documents, and every token is predicted once.",
    ]


def _boards(boards: BoardsResult) -> list[str]:
    rows = []
    for layer in boards.layers or []:
        scores = [(one.coverage, one.held_out_coverage, one.reconstruction) for one in (layer, layer.random) if one]
        rows.append([layer.layer, *sum(scores, ()), *([None] * 3 if layer.random is None else [])])
    names = ["coverage", "held-out", "reconstruction"]
    about = (
        "How well single features track properties of the board (1 is best), beside the same architecture with "
        "random weights"
        f"{_shown(boards.games, '; on {:,} games to choose features and as many to test them') or ''}."
    )
    return [about, markdown_table(["layer", *names, *(f"random {name}" for name in names)], rows)]


def _environment(run: Path) -> dict[str, Any]:
    path = run / "environment.json"
    environment: dict[str, Any] = read_json(path) if path.exists() else {}
    return environment


def _command(words: list[str]) -> str:
    """The command without the machine's folders: absolute paths keep their last part."""
    return " ".join(re.sub(r"(?<![^=,])/(?:[^/=,]+/)*", "", word) for word in words)


def _percent(share: float | None) -> str | None:
    return _shown(share, "{:.1%}")


def _shown(number: float | None, form: str) -> str | None:
    """A number as text; None for one that is not known, as a saved measure may lack any."""
    return None if number is None else form.format(number)


def _load(load: list[float] | None) -> str | None:
    return None if load is None else f"{min(load):.3f} to {max(load):.3f}"
