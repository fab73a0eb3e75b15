"""Models of text: our training loop compared with transformers' `Trainer`, and generation by a mixture compared with
the dense model of equal active parameters.

Legend: B rows, N tokens of a row.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glassmoe.config import RunConfig, load, recipes
from glassmoe.data.corpus import Corpus, Rows
from glassmoe.model import GlassConfig, GlassForCausalLM
from glassmoe.training.distributed import processes
from glassmoe.training.language import LanguageTask, build_model
from glassmoe.training.loop import run_task
from glassmoe.training.resolve import resolve

from .compare import Sizes, alternate, per_second, ratios, row, skipped

LAYERS = ("gelu", "moe-x")
WARM_UP = 3
"""Steps of a fit that do not count."""
PROMPT = 8


def training_rows(data: Path, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> list[dict[str, Any]]:
    """A line for each of `LAYERS`: the recipe text-small with AdamW on the prepared text in `data`."""
    if find_spec("accelerate") is None:
        return [skipped("training steps beside Trainer", "install accelerate beside glassmoe: pip install accelerate")]
    rows = []
    for name in LAYERS:
        config = _config(name, data, sizes, device, dtype)
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            optimizer: list[str] = []
            fits = {
                "ours": partial(_our_fit, config, root, device),
                "theirs": partial(_their_fit, config, root, dtype, optimizer),
            }
            seconds = _in_turn(fits, sizes.repeats)
        batch, length = config.train.batch_rows, _length(config)
        tokens = sizes.text_steps * batch * length
        rows.append(
            row(
                f"text-small training, {name}, adamw",
                ratios(seconds["theirs"], seconds["ours"]),
                of="tokens/s of transformers' Trainer",
                at_least=1.0,
                note=f"the same model class and rows; {batch} rows of {length} tokens a step, {sizes.text_steps} steps "
                f"after {WARM_UP}, {str(dtype).removeprefix('torch.')}; ours by the loop of glassmoe train with "
                f"torch's AdamW, theirs with its default, {optimizer[0]}; neither logs or saves in these steps",
                tokens_per_second=per_second(tokens, seconds["ours"]),
                tokens_per_second_of_peer=per_second(tokens, seconds["theirs"]),
            )
        )
    return rows


def _in_turn(fits: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """The seconds that each fit returns, `repeats` times each, run in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in fits}
    for _ in range(repeats):
        for name, fit in fits.items():
            seconds[name].append(fit())
    return seconds


def _config(name: str, data: Path, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> RunConfig:
    config = load(recipes()["text-small"])
    config.data.path, config.model.ffn, config.optimizer.name = str(data), name, "adamw"
    settings = config.train
    settings.steps = settings.log_every = settings.eval_every = settings.checkpoint_every = WARM_UP + sizes.text_steps
    settings.eval_rows = 1
    settings.batch_rows = settings.micro_rows = min(settings.batch_rows, sizes.step_rows)
    settings.device = "cuda" if device.type == "cuda" else "cpu"
    settings.precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    return config


def _length(config: RunConfig) -> int:
    """Tokens of a row that a step reads."""
    return int(config.data.rows.partition(":")[2]) - 1


class _Timed(LanguageTask):
    """Language modelling that records the end of each step."""

    marks: list[float]

    def after_update(self, step: int) -> None:
        del step
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())


def _our_fit(config: RunConfig, root: Path, device: torch.device) -> float:
    group = processes(device)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        task = _Timed(resolve(config, Path(folder) / "run", device, group)[0], group)
        task.marks = []
        run_task(task, config.train, config.optimizer, Path(folder) / "run", group, device)
    return task.marks[-1] - task.marks[WARM_UP - 1]


def _their_fit(config: RunConfig, root: Path, dtype: torch.dtype, optimizer: list[str]) -> float:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    marks: list[float] = []

    class Mark(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            marks.append(time.perf_counter())

    corpus, settings = Corpus.open(Path(str(config.data.path))), config.optimizer
    rows = Rows(corpus.split("train"), config.data.rows)
    wanted = config.train.steps * config.train.batch_rows
    tokens_RN, _ = rows.batch(np.arange(wanted) % len(rows))
    examples = [{"input_ids": row_N, "labels": row_N} for row_N in torch.from_numpy(tokens_RN[:, :-1].astype(np.int64))]
    torch.manual_seed(config.seed)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=config.train.steps,
            per_device_train_batch_size=config.train.batch_rows,
            learning_rate=settings.lr,
            adam_beta1=settings.betas[0],
            adam_beta2=settings.betas[1],
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.clip,
            lr_scheduler_type="cosine",
            warmup_steps=settings.warmup_steps,
            bf16=dtype == torch.bfloat16,
            use_cpu=config.train.device == "cpu",
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        model = build_model(config, rows.length, corpus.kind)
        Trainer(model, arguments, train_dataset=examples, callbacks=[Mark()]).train()
    optimizer.append(str(arguments.optim.value))
    return marks[-1] - marks[WARM_UP - 1]


def generation_rows(sizes: Sizes, device: torch.device) -> list[dict[str, Any]]:
    """A line for each width: greedy generation with a cache of keys and values, one text at a time."""
    return [_generation_row(width, sizes, device) for width in sizes.widths]


def _generation_row(width: int, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    models = {name: _model(name, width, sizes, device) for name in LAYERS}
    prompt_BN = torch.arange(1, PROMPT + 1, device=device).unsqueeze(0)
    wrote: dict[str, list[int]] = {}

    def write(name: str) -> None:
        made_BN = models[name].generate(
            prompt_BN,
            max_new_tokens=sizes.generated,
            min_new_tokens=sizes.generated,
            do_sample=False,
            pad_token_id=0,
        )
        wrote[name] = made_BN[0, PROMPT:].tolist()

    seconds = alternate({name: partial(write, name) for name in LAYERS}, sizes.repeats, device)
    active = {name: model.active_parameters() for name, model in models.items()}
    layer: Any = models["moe-x"].feed_forwards()[0]
    return row(
        f"generation, d={width}, moe-x",
        ratios(seconds["gelu"], seconds["moe-x"]),
        of="tokens/s of gelu",
        at_least=0.9,
        note=f"{sizes.generated} tokens after {PROMPT}, batch 1, greedy, float32, transformers' generate; text-small's "
        "model at this width and 4 x it, random weights, a head of its own (with the embedding's a random model "
        "repeats one token)",
        tokens_per_second=per_second(sizes.generated, seconds["moe-x"]),
        tokens_per_second_of_peer=per_second(sizes.generated, seconds["gelu"]),
        generated=len(wrote["moe-x"]),
        different_tokens=len(set(wrote["moe-x"])),
        active_parameters=active["moe-x"],
        active_parameters_of_dense=active["gelu"],
        layer_share=_layer_share(models, seconds, layer.w_enc.shape[2], sizes.generated, device),
    )


def _model(name: str, width: int, sizes: Sizes, device: torch.device) -> Any:
    recipe = load(recipes()["text-small"]).model
    torch.manual_seed(0)
    config = GlassConfig(
        ffn=name,
        layers=recipe.layers,
        heads=max(1, width // 64),
        width=width,
        active_width=4 * width,
        num_experts=recipe.num_experts,
        experts_per_token=recipe.experts_per_token,
        vocab_size=sizes.text_ids,
        context=PROMPT + sizes.generated,
        tie_word_embeddings=False,
    )
    return GlassForCausalLM(config).eval().to(device)


@torch.no_grad()
def _layer_share(
    models: dict[str, Any], seconds: dict[str, list[float]], width: int, generated: int, device: torch.device
) -> dict[str, float]:
    """Share of a token's time in all feed-forward layers, each run alone."""
    x_TD = torch.randn(generated, 1, width, device=device)
    shares = {}
    for name, model in models.items():

        def run(model: Any = model) -> None:
            for layer in model.feed_forwards():
                for x_1D in x_TD:
                    layer(x_1D)

        alone = alternate({name: run}, len(seconds[name]), device)[name]
        shares[name] = float(statistics.median(ratios(alone, seconds[name])))
    return shares
