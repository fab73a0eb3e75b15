"""Prepare data, train, upcycle and generate."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from glassmoe import config as configuration
from glassmoe.config import RunConfig
from glassmoe.data.sources import discover, made_of
from glassmoe.locks import writing

from .arguments import Device, Numbers, PathLike, above_zero, one_of, paths, public, whole_numbers
from .recipes import configure, find_recipe

if TYPE_CHECKING:
    from glassmoe.chess.board_results import BoardsResult
    from glassmoe.data.prepared import PreparedCorpus
    from glassmoe.inspect.model import Generated, Model
    from glassmoe.training.memory import MemoryPlan


@public(tokens=one_of("characters", "moves"))
def prepare_chess(
    inputs: PathLike | Sequence[PathLike],
    *,
    out: PathLike,
    tokens: Literal["characters", "moves"] = "characters",
    trust: bool = False,
    workers: int | None = None,
    max_games: int | None = None,
    valid_share: float = 0.01,
    overwrite: bool = False,
) -> PreparedCorpus:
    """Prepare chess games for training: check them move by move, remove duplicates, split them and store their tokens.

    Args:
        inputs: PGN files, files of lines such as `;1.e4 e5 2.Nf3` (.pgn, .txt; also .zst, .bz2, .gz), folders of
            these, or - for standard input.
        out: Folder to write.
        tokens: What a token is: a character of the game's text, or a move.
        trust: Convert the text only and do not check that moves are legal (faster). Check marks stay as written; `++`,
            which is double check or mate, becomes `+`.
        workers: Number of processes (default: one a core).
        max_games: Stop after this many games.
        valid_share: Share of the games that is kept for validation.
        overwrite: Replace games that are already in the folder.
    """
    from glassmoe.chess.pgn import prepare_chess as prepare

    return prepare(
        [str(path) for path in paths(inputs)],
        Path(out),
        trust=trust,
        workers=workers,
        valid_share=valid_share,
        max_games=max_games,
        overwrite=overwrite,
        tokens=tokens,
    )


@public()
def prepare_text(
    inputs: PathLike | Sequence[PathLike],
    *,
    out: PathLike,
    tokenizer: str,
    field: str = "text",
    source_field: str | None = None,
    workers: int | None = None,
    max_documents: int | None = None,
    valid_share: float = 0.01,
    seed: int = 0,
    overwrite: bool = False,
) -> PreparedCorpus:
    """Prepare documents for training: remove duplicates, tokenize, split and store them.

    Args:
        inputs: Files of documents (.jsonl, .txt; also .zst, .bz2, .gz; .parquet and .arrow with pyarrow), folders of
            these, datasets by name (datasets:NAME:SPLIT, with the package datasets), or - for standard input.
        out: Folder to write.
        tokenizer: train:8192 trains a byte-level BPE with that many ids; otherwise the name or folder of a transformers
            tokenizer.
        field: Name of the field that holds the text in .jsonl files and tables.
        source_field: Name of the field that says where a document came from, such as meta.source (default: `source`,
            else the name of the file).
        workers: Number of processes (default: one a core).
        max_documents: Stop after this many documents.
        valid_share: Share of the documents that is kept for validation.
        seed: Seed of the sample on which a tokenizer is trained.
        overwrite: Replace text that is already in the folder.
    """
    from glassmoe.text.documents import prepare_text as prepare

    return prepare(
        [str(path) for path in paths(inputs)],
        Path(out),
        tokenizer=tokenizer,
        field=field,
        source_field=source_field,
        workers=workers,
        valid_share=valid_share,
        max_documents=max_documents,
        overwrite=overwrite,
        seed=seed,
    )


@overload
def train(
    recipe: PathLike | RunConfig | None = None,
    *,
    data: PathLike | None = None,
    out: PathLike | None = None,
    dry_run: Literal[False] = False,
    processes: int = 1,
    memory: float | None = None,
    **settings: Any,
) -> Path: ...


@overload
def train(
    recipe: PathLike | RunConfig | None = None,
    *,
    data: PathLike | None = None,
    out: PathLike | None = None,
    dry_run: Literal[True],
    processes: int = 1,
    memory: float | None = None,
    **settings: Any,
) -> MemoryPlan: ...


@public(memory=above_zero)
def train(
    recipe: PathLike | RunConfig | None = None,
    *,
    data: PathLike | None = None,
    out: PathLike | None = None,
    dry_run: bool = False,
    processes: int = 1,
    memory: float | None = None,
    **settings: Any,
) -> Path | MemoryPlan:
    """Train a model into a run directory, or resume the run that is there.

    A run is resumed to the same bits when `out` already holds it. Without data, synthetic chess games are made.

    Args:
        recipe: Name of a recipe or a YAML file (in Python also a `RunConfig`); default: the defaults of every field.
        data: Prepared data, or raw files, which are prepared into the run directory first.
        out: Run directory (default: runs/RECIPE, or runs/FFN without a recipe).
        dry_run: Compute only the memory that it needs.
        processes: Number of processes of the dry run; torchrun says how many train.
        memory: Memory of the dry run for one process, in GiB (default: that of the device).
        settings: Fields of the configuration, by their full name or, where it is unique, the last part of it:
            `steps=200`, `ffn="gelu"`, `**{"model.width": 256}`, or a section as a dictionary.

    Returns:
        The run directory, which `glassmoe.load` opens; of a dry run, the parts of the memory.
    """
    config, name = configure(recipe, settings)
    if dry_run:
        from glassmoe.training.memory import plan_memory

        if data is not None:
            config.data.path = str(data)
        return plan_memory(config, processes, memory)
    if processes != 1 or memory is not None:
        raise ValueError("processes and memory belong to a dry run; set dry_run, or start processes with torchrun")
    return _train(config, name, data, out)


def upcycle(
    source: PathLike,
    recipe: PathLike | RunConfig | None = None,
    *,
    layers: Numbers | None = None,
    data: PathLike | None = None,
    out: PathLike | None = None,
    **settings: Any,
) -> Path:
    """Turn a trained dense model into a mixture of experts, and train it on.

    Every expert starts as a copy of the dense feed-forward layer. A model that glassmoe did not train keeps its own
    transformers class: its MLPs are replaced in place. The run directory gets a receipt, start.json, which says what
    changed and by how much the loss moved.

    Args:
        source: The dense model: a run directory, or a folder or hub id of a causal language model of transformers.
        recipe: Name of a recipe or a YAML file (in Python also a `RunConfig`); default: the defaults of every field.
        layers: Of a model that glassmoe did not train: layers to replace, such as 15 or "12-19" (default: all).
        data: Prepared data, or raw files, which are prepared into the run directory first.
        out: Run directory (default: runs/RECIPE, or runs/FFN without a recipe).
        settings: Fields of the configuration, as for `train`.

    Returns:
        The run directory. Load it with `glassmoe.load`.
    """
    config, name = configure(recipe, settings)
    if config.start.source not in (None, str(source)):
        raise ValueError(f"the source is given twice: {source} and start.source {config.start.source}; give one")
    config.start.source = str(source)
    if layers is not None:
        config.start.replace_layers = whole_numbers(layers, "layers")
    return _train(config, name, data, out)


def _train(config: RunConfig, name: str, data: PathLike | None, out: PathLike | None) -> Path:
    out = Path("runs") / name if out is None else Path(out)
    if data is not None:
        config.data.path = str(data)
    with writing(out):
        if config.data.path is not None:
            config.data.path = _prepared(Path(config.data.path), config, out)
        from glassmoe.training.language import train as train_language_model

        return train_language_model(config, out)


RAW = (".pgn", ".txt", ".jsonl", ".parquet", ".arrow", ".zst", ".bz2", ".gz")


def _prepared(data: Path, config: RunConfig, out: Path) -> str:
    """Prepared data as it is; raw files are prepared into the run directory, where a later call with the same files
    finds them."""
    if any((data / name).exists() for name in ("manifest.json", "config.yaml", "config.json")):
        return str(data)  # prepared, or a mistake that is explained where it is opened
    files = data.iterdir() if data.is_dir() else [data]
    if not any(file.suffix in RAW and file.exists() for file in files):
        return str(data)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"{data} holds raw files; with several processes, prepare them first with glassmoe data")
    text = config.data.tokens == "text"
    folder = out / ("text" if text else "games")
    if text:
        from glassmoe.text.documents import files_of

        names = files_of(data)[0]
    else:
        from glassmoe.chess.game_files import KINDS

        names = discover(data, KINDS)[0]
    if made_of(folder, names, out):
        return str(folder)
    if text:
        prepare_text(data, out=folder, tokenizer=config.start.source or "train:8192", overwrite=True)
    else:
        tokens: Any = config.data.tokens
        prepare_chess(data, out=folder, tokens=tokens, overwrite=True)
    return str(folder)


@public()
def quickstart(
    *,
    out: PathLike = Path("runs/quickstart"),
    steps: int | None = None,
    synthetic_games: int | None = None,
    games: int = 400,
) -> BoardsResult:
    """Train a small MoE-X on synthetic chess games and show what its features track: a few minutes on two cores.

    Args:
        out: Run directory.
        steps: Training steps (default: those of the recipe).
        synthetic_games: Number of games to train on (default: that of the recipe).
        games: Number of games to choose features on, and again to test them on.
    """
    from glassmoe.chess.board_evaluation import evaluate_boards
    from glassmoe.chess.selfplay import generate as generate_games
    from glassmoe.data.corpus import Corpus
    from glassmoe.measure.saved import save_measure
    from glassmoe.model.subject import load_subject
    from glassmoe.pages.report import write_report
    from glassmoe.training.language import train as train_language_model

    config = configuration.load(find_recipe("quickstart"))
    config.train.steps = steps or config.train.steps
    config.data.synthetic_games = synthetic_games or config.data.synthetic_games
    with writing(Path(out)):
        out = train_language_model(config, Path(out))
        # What was found on games of one seed is tested on games of another.
        generate_games(out / "unseen", games=games + games // 8, seed=config.seed + 1, overwrite=True)
        corpus, unseen = Corpus.open(out / "games"), Corpus.open(out / "unseen")
        result = evaluate_boards(load_subject(out, own=True).model, corpus, games=games, test_corpus=unseen)
        save_measure(out, "boards", result, corpus)
        write_report([out], out / "report.html")
    return result


@public()
def generate(
    model: PathLike | Model,
    prompt: str | None = None,
    *,
    tokens: int = 100,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    frequency_penalty: float = 0.0,
    samples: int = 1,
    seed: int = 0,
    stream: bool | None = None,
    device: Device = "auto",
) -> Generated:
    """Let a model continue a prompt.

    Args:
        model: A run directory, a folder of transformers files, a hub id, or what `decompose` made; in Python also what
            `load` returned.
        prompt: Text to continue (default: the beginning of a game or document).
        tokens: Tokens to add at most; the context may end earlier.
        temperature: 0 takes the likeliest token each time; 1 samples from the model's distribution.
        top_p: Sample from the likeliest tokens that have this share of the probability together.
        top_k: Sample from this many likeliest tokens; 0 means all.
        frequency_penalty: Lower the logit of a token by this much for each time that it was generated.
        samples: Number of continuations.
        seed: Seed of the sampling.
        stream: Print the text as it is generated (default on the command line: in a terminal, for one sample).
        device: Where the model runs.
    """
    from .models import load

    generated = load(model, device=device).generate(
        prompt,
        tokens=tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        frequency_penalty=frequency_penalty,
        samples=samples,
        seed=seed,
        on_text=_print_piece if stream else None,
    )
    if stream:
        _print_piece("\n")
    return generated


def _print_piece(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
