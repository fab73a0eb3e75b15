"""Configurations: recipes, overrides, and one clear message for each mistake."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from glassmoe import config as configuration
from glassmoe.cli import main as cli
from glassmoe.coders.configuration import CoderConfig, FitConfig
from glassmoe.config import ModelConfig, RunConfig, TrainConfig, from_dict, load, plain, recipes, to_yaml
from glassmoe.config_values import NotExact, from_exact_values, parser_of
from glassmoe.data.corpus import Corpus, Rows
from glassmoe.model import FEED_FORWARD
from glassmoe.text.tokens import text_kind, train_tokenizer
from glassmoe.training.language import build_model, train
from glassmoe.training.tracking import read_metrics


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_whole_and_builds(name: str, tmp_path: Path) -> None:
    config = load(recipes()[name])
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "c.yaml") == config
    row_length = int(config.data.rows.split(":")[1])
    kind = text_kind(train_tokenizer(["a text"], 257)) if config.data.tokens == "text" else None
    for ffn in FEED_FORWARD:
        config.model.ffn = ffn
        with torch.device("meta"):
            assert build_model(config, row_length, kind).num_parameters() > 0


PARTS: list[tuple[Any, dict[str, Any]]] = [
    (RunConfig, {"model": {"eos_token_id": [1, 2], "rotary_scaling": {"factor": 2.0}, "options": {"k": 4, "a": 0.5}}}),
    (
        RunConfig,
        {"model": {"eos_token_id": 1, "activation": "silu", "kv_heads": 2}, "optimizer": {"betas": [0.5, 0.7]}},
    ),
    (RunConfig, {"start": {"source": "a/b-1.c", "replace_layers": [1, 2], "kl": 0.5}, "train": {"mirror": "wandb"}}),
    (FitConfig, {"source": "runs/a", "coder": {"layer": 3, "kind": "mxd"}, "optimizer": {"lr": 0.5}}),
    (FitConfig, plain(FitConfig("runs/a", coder=CoderConfig(1, "jumprelu", site="mlp-out", options={"p": 2})))),
    (FitConfig, {"source": "gpt2", "coder": {"layer": 3}, "start_token": "<|endoftext|>"}),
]
"""Configurations whose values have the types of their keys."""
INEXACT: list[tuple[Any, dict[str, Any]]] = [
    (RunConfig, {"optimizer": {"lr": 1}}),
    (RunConfig, {"train": {"steps": True}}),
    (RunConfig, {"seed": 1.0}),
    (RunConfig, {"train": {"steps": "5"}}),
    (RunConfig, {"optimizer": {"betas": [0.5, 0.7, 0.9]}}),
    (RunConfig, {"optimizer": {"lr": float("nan")}}),
    (RunConfig, {"model": {"options": {"k": "4"}}}),
    (RunConfig, {"model": {"eos_token_id": [1, 2.5]}}),
    (RunConfig, {"model": {"norm": "batchnorm"}}),
    *((RunConfig, {"data": {"path": word}}) for word in ("null", "~", "1", "a: b", "a:", "No", "2020-01-01", "[1]")),
]
"""Configurations with values that jsonargparse changes or refuses, or may."""


def by_jsonargparse(kind: Any, values: dict[str, Any]) -> Any:
    parser = parser_of(kind)
    return kind(**vars(parser.instantiate(parser.parse_object(values))))


def test_values_that_have_their_types_make_what_jsonargparse_makes() -> None:
    cases = [*((RunConfig, configuration.read(path)) for path in recipes().values()), *PARTS]
    for kind, values in cases:
        fast, slow = from_exact_values(kind, deepcopy(values)), by_jsonargparse(kind, values)
        assert fast == slow and repr(fast) == repr(slow), values
    own = {"k": 4}
    config = from_dict({"model": {"options": own}})
    assert config.model.options == own and config.model.options is not own


@pytest.mark.parametrize(("kind", "values"), INEXACT)
def test_other_values_are_left_to_jsonargparse(kind: Any, values: dict[str, Any]) -> None:
    with pytest.raises(NotExact):
        from_exact_values(kind, values)


@pytest.mark.parametrize("name", ["quickstart", "chess-small"])
def test_every_cpu_recipe_steps(name: str, noise_games: Path, tmp_path: Path) -> None:
    config = load(recipes()[name])
    config.data.path, config.train.steps, config.train.eval_rows = str(noise_games), 1, 8
    line = read_metrics(train(config, tmp_path / "run") / "metrics.jsonl")[-1]
    assert 3.2 < line["loss"] < 3.8


def test_paper_recipe_has_the_papers_numbers() -> None:
    config = load(recipes()["chess-paper"])
    assert (config.model.layers, config.model.heads, config.model.width, config.model.active_width) == (
        8,
        8,
        512,
        4096,
    )
    assert (config.train.batch_rows, config.optimizer.warmup_steps, config.optimizer.lr) == (100, 2000, 3e-4)
    assert config.optimizer.lr * config.optimizer.final_lr == pytest.approx(3e-5)


@pytest.mark.parametrize(("name", "sizes"), [("s", (12, 12, 768, 6144)), ("m", (24, 16, 1024, 8192))])
def test_recipes_of_language_have_the_papers_numbers(name: str, sizes: tuple[int, ...]) -> None:
    """Method 9: Small and Medium, 320 rows of 1,024 inputs a step, 3e-4 to 3e-5, and 8 experts, 2 a token."""
    config = load(recipes()[f"fineweb-{name}"])
    model, learning, training = config.model, config.optimizer, config.train
    assert (model.layers, model.heads, model.width, model.active_width) == sizes
    assert (model.num_experts, model.experts_per_token, config.data.rows) == (8, 2, "packed:1025")
    assert (learning.name, learning.lr, learning.warmup_steps, learning.clip) == ("adamw", 3e-4, 5000, 1.0)
    assert learning.lr * learning.final_lr == pytest.approx(3e-5)
    assert (training.steps, training.batch_rows) == (100_000, 320)
    with torch.device("meta"):
        built = build_model(config, 1025, text_kind(train_tokenizer(["a text"], 257)))
    layer = built.feed_forwards()[0]
    assert (layer.expert_hidden, layer.num_experts) == (sizes[2] * 4, 8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"lyers": 3}}, r"unknown configuration key model.lyers; did you mean model.layers\?"),
        ({"modl": {}}, r"unknown configuration key modl; did you mean model"),
        ({"model": 3}, "model holds keys of its own, got 3"),
        ({"model": {"layers": "many"}}, "model.layers"),
        ({"optimizer": {"name": "sgd"}}, "optimizer.name"),
        ({"model": {"heads": 3}}, "width 128 is not a multiple of model.heads 3"),
        ({"model": {"experts_per_token": 9}}, "experts_per_token 9 is more than model.num_experts 8"),
        ({"model": {"width": 100, "heads": 2}}, "model.width 100 is not a multiple of 8"),
        ({"model": {"active_width": 24}}, "active_width 24 shared among 2 experts"),
        ({"model": {"heads": 4, "kv_heads": 3}}, "model.heads 4 is not a multiple of model.kv_heads 3"),
        ({"model": {"kv_heads": 0}}, "model.kv_heads is 0; expected a number above 0"),
        ({"train": {"steps": -1}}, "train.steps is -1; expected"),
        *(
            ({"model": sizes}, r"make a model of more than 1e\+12 parameters, which glassmoe does not build; lower")
            for sizes in (
                {"layers": 10**10},
                {"width": 10**10},
                {"active_width": 10**13},
                {"num_experts": 10**12},
                {"context": 10**13},
                {"unused_ids": 10**13},
                {"ffn": "peer", "options": {"num_experts": 10**12}},
                {"ffn": "monet-hd", "options": {"experts": 10**7, "unit": 10**5}},
                {"ffn": "gelu", "layers": 10**400},
            )
        ),
        (
            {"train": {"batch_rows": 10, "micro_rows": 4}},
            "batch_rows 10 is not a multiple of train.micro_rows 4",
        ),
        ({"schema_version": 99}, "schema version 99, newer than"),
    ],
)
def test_mistakes_get_one_clear_message(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(values)


def test_values_arrive_with_their_types(tmp_path: Path) -> None:
    config = from_dict({"seed": 3, "model": {"ffn": "peer", "options": {"k": 4}}, "optimizer": {"betas": [0.8, 0.9]}})
    assert (config.seed, config.model.options, config.optimizer.betas) == (3, {"k": 4}, (0.8, 0.9))
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="does not hold a configuration"):
        load(tmp_path / "list.yaml")


def test_differences_are_named() -> None:
    a = RunConfig()
    b = RunConfig(model=ModelConfig(layers=9), train=TrainConfig(steps=7))
    assert configuration.differences(a, b) == ["model.layers: 4 -> 9", "train.steps: 1000 -> 7"]
    assert configuration.differences(a, RunConfig()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--config", "chess-smal", "--out", "x"], "did you mean chess-small?"),
        (["train", "--out", "x", "--model.lyers", "3"], "did you mean model.layers?"),
        (["train", "--out", "x", "--model.layers", "three"], "model.layers"),
        (["train", "--out", "x", "--config", "typo.yaml"], "did you mean model"),
        (["trian"], "did you mean train?"),
        (["eval"], "needs one of ppl, boards"),
        (["eval", "bords", "x"], "got 'bords'"),
        (["eval", "ppl", "nowhere"], "there is no run at nowhere"),
        (["generate", "."], "is not a run"),
        (["data", "chess", "nothing.pgn", "--out", "x"], "nothing.pgn"),
        (["train", "--out", "x", "--data.path", "nowhere"], "nowhere"),
    ],
)
def test_the_command_line_explains_mistakes(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "typo.yaml").write_text("modle: {width: 64}\n")
    assert cli.main(words) == 2
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors


def test_overrides_beat_the_recipe(noise_games: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = f"train --config=chess-small --data.path {noise_games} --data.rows games:64 --out {out} --seed 5".split()
    words += [
        "--model.ffn",
        "switch",
        "--model.layers",
        "1",
        "--train.steps",
        "1",
        "--train.eval_rows",
        "8",
        "--train.batch_rows",
        "16",
    ]
    assert cli.main(words) == 0
    config = load(out / "config.yaml")
    assert (config.seed, config.model.ffn, config.model.layers, config.train.steps) == (5, "switch", 1, 1)
    assert (config.model.active_width, config.data.rows) == (1024, "games:64")
    assert Rows(Corpus.open(noise_games).split("train"), config.data.rows).length == 64
