"""A run is a directory: `config.yaml`, `environment.json`, `metrics.jsonl`, `state/` (checkpoints), and the model as
transformers' own files with a tokenizer and a model card."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from glassmoe import __version__
from glassmoe import config as configuration
from glassmoe.atomic import flush, publish_folder, sweep, write_text
from glassmoe.checksums import seal, with_checksum
from glassmoe.config import RunConfig
from glassmoe.data.domains import domain, domain_names
from glassmoe.data.tokens import TokenKind
from glassmoe.locks import LOCK
from glassmoe.model.families import context_of
from glassmoe.model.replacing import listed
from glassmoe.model.swapping import FIELDS

from .checkpoint import latest
from .records import ENVIRONMENT, METRICS, START, Environment

CONFIG = "config.yaml"
"""The configuration of a run."""
MAY_CHANGE = (
    "train.async_checkpoints:",
    "data.path:",
    "source:",
    "start_token:",
    "train.eval_every:",
    "train.keep:",
    "train.mirror:",
    "train.profile:",
    "train.recompute:",
    "train.replicas:",
)
"""Settings with another value of which a run resumes."""

SIZES = ("layers", "heads", "width", "context")
"""Settings of a model's shape that its card shows where layers were replaced."""
UNSTARTED = {CONFIG, ENVIRONMENT, LOCK, METRICS, START, "profile", "snapshots", "state", "wandb"}
"""What a run directory may hold before its first checkpoint, beside a corpus that was made for the run."""


def check(out: Path, config: Any) -> None:
    """ValueError unless `out` is free, or holds the run that `config` describes.

    A run without a checkpoint has nothing to lose and may start again with a different configuration. Data, and a model
    that is read, may have moved, because their fingerprints are checked. How often it validates changes no weights.
    """
    if latest(out / "state"):
        if not (out / CONFIG).is_file():
            raise ValueError(f"{out} holds checkpoints but no {CONFIG}; put it back, or pass a different --out")
        changed = configuration.differences(configuration.load_as(type(config), out / CONFIG), config)
        changed = [change for change in changed if not change.startswith(MAY_CHANGE)]
        if changed:
            raise ValueError(
                f"{out} holds a run with another configuration ({'; '.join(changed)}); "
                f"pass a different --out, or the configuration of the run to resume it"
            )
    elif out.exists():
        corpora = {domain(name).corpus for name in domain_names()}
        if not out.is_dir() or not {path.name for path in out.iterdir()} <= {*UNSTARTED, *corpora}:
            raise ValueError(f"{out} already exists and is not a run of glassmoe; pass a different --out")


def claim(out: Path, config_yaml: str) -> None:
    """Makes `out` the directory of the run with this configuration."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / CONFIG, config_yaml)


def write_environment(
    out: Path, *, data: str, data_sha256: str, hardware: str, dtype: str, active_parameters: int, total_parameters: int
) -> None:
    """Writes environment.json: how this run was made."""
    environment = Environment(
        glassmoe=__version__,
        command=sys.argv,
        commit=commit(),
        data=data,
        data_sha256=data_sha256,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware=hardware,
        compute_dtype=dtype,
        active_parameters=active_parameters,
        total_parameters=total_parameters,
        python=platform.python_version(),
        packages=dict(_packages()),
    )
    write_text(out / ENVIRONMENT, json.dumps(with_checksum(environment.to_dict()), indent=1) + "\n")


def publish(out: Path, model: Any, config: RunConfig, step: int, kind: TokenKind) -> None:
    """Writes the model, its tokenizer and a card into the run as files of transformers; each is complete before it gets
    its name. `kind`: the kind of its tokens.

    OSError when the files cannot be written.
    """
    staging = out / "state" / "publish"
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(staging)
        tokenizer_of(kind, context_of(model), model.config.eos_token_id).save_pretrained(staging)
        (staging / "README.md").write_text(model_card(config, step, kind), encoding="utf-8")
        _complete(staging)
        for path in sorted(staging.iterdir()):
            path.replace(out / path.name)
        flush(out)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"cannot write the model files of {out}: {error}; the checkpoint {latest(out / 'state')} is complete: "
            f"free some space and run the same command again"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def snapshot(out: Path, model: Any, step: int, kind: TokenKind) -> Path:
    """Saves the model of this step as `out/snapshots/step-N`, for curves over training, with its tokenizer if it has
    one. Returns the path.

    OSError when the files cannot be written.
    """
    path = out / "snapshots" / f"step-{step:08d}"
    staging = path.with_name(path.name + ".partial")
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(staging)
        if kind.tokenizer is not None:
            tokenizer_of(kind, context_of(model), model.config.eos_token_id).save_pretrained(staging)
        _complete(staging)
        # A killed run reaches this step again, with the same weights.
        publish_folder(staging, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write the snapshot {path}: {error}; free some space and try again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return path


def _complete(staging: Path) -> None:
    """Puts checksums into the weights of a folder, and flushes its files to disk."""
    for path in staging.iterdir():
        if path.suffix == ".safetensors":
            seal(path)
        flush(path)


def clean(out: Path) -> None:
    """Deletes what a killed process of this run left: half-written files, which may be as large as the model."""
    sweep(out, out / "state", out / "snapshots")
    shutil.rmtree(out / "state" / "publish", ignore_errors=True)


def tokenizer_of(kind: TokenKind, context: int, eos: int | list[int] | None = None) -> PreTrainedTokenizerFast:
    """The tokens of a corpus as a transformers tokenizer: its own one, whose eos token is that of the (first) id `eos`
    or else the separator, or one of its fixed vocabulary.

    A fixed vocabulary has one token a character, and a character outside it is read as a space where it has one; or
    one token a word, and a word outside it is refused.
    """
    more: dict[str, Any] = {"model_max_length": context, "clean_up_tokenization_spaces": False}
    if kind.tokenizer is not None:
        first = eos[0] if isinstance(eos, list) else eos
        end = kind.start_token if first is None else kind.vocabulary[first]
        tokenizer = Tokenizer.from_str(kind.tokenizer)
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=kind.start_token, eos_token=end, **more)
    vocabulary = {token: i for i, token in enumerate(kind.vocabulary)}
    if kind.separator:
        tokenizer = Tokenizer(models.WordLevel(vocabulary))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        tokenizer = Tokenizer(models.WordLevel(vocabulary, **({"unk_token": " "} if " " in vocabulary else {})))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
        tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **more)


def model_card(config: RunConfig, step: int, kind: TokenKind) -> str:
    model, world = asdict(config.model), kind.domain
    what, code = (
        "glassmoe decoder",
        (
            "import glassmoe.model\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
            'model = AutoModelForCausalLM.from_pretrained(".")\ntokenizer = AutoTokenizer.from_pretrained(".")'
        ),
    )
    if config.start.replace_layers is not None:
        model = {name: model[name] for name in (*SIZES, *FIELDS)}
        what = f"model whose layers {listed(config.start.replace_layers)} were replaced by glassmoe"
        code = 'import glassmoe\nmodel = glassmoe.load(".")  # model.torch_model is the transformers model'
    return (
        f"---\nlibrary_name: transformers\ntags: [glassmoe, interpretability, {world}]\n---\n\n"
        f"# {config.model.ffn} {world} model\n\n"
        f"A {what} that reads and writes {kind.about}. "
        f"It was trained for {step} of {config.train.steps} steps.\n\n"
        f"```python\n{code}\n```\n\n"
        "| setting | value |\n| --- | --- |\n"
        + "".join(f"| {key} | {value} |\n" for key, value in model.items() if value is not None)
        + "\nThe whole configuration is in `config.yaml`, the course of training in `metrics.jsonl`, and what "
        "it was made with in `environment.json`.\n"
    )


def commit() -> str | None:
    """The commit of the working directory's repository, with a `+` when files differ from it. A process asks git once,
    because it goes on with the code that it has loaded."""
    return _commit(Path.cwd())


@lru_cache(maxsize=1)
def _commit(folder: Path) -> str | None:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"], capture_output=True, text=True, cwd=folder
        )
    except OSError:
        return None
    return done.stdout.strip() or None


@cache
def _packages() -> dict[str, str | None]:
    """Versions of the packages that a run depends on; None for those that are not installed."""
    return {name: _version(name) for name in ("torch", "transformers", "numpy", "safetensors", "chess")}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
