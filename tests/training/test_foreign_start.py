"""Recipes that upcycle a GPT-2, GPT-NeoX or Llama, and runs of earlier versions, which converted these families to
decoders of ours."""

import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from glassmoe import config as configuration
from glassmoe.cli import main as cli
from glassmoe.config import ModelConfig, RunConfig, StartConfig
from glassmoe.data.corpus import Corpus
from glassmoe.model import GlassForCausalLM
from glassmoe.model.importing import imported_model
from glassmoe.model.subject import load_subject
from glassmoe.model.swapping import own_layers
from glassmoe.model.upcycle import SHARED
from glassmoe.training.language import train
from glassmoe.training.records import read_start
from glassmoe.training.run import tokenizer_of
from glassmoe.training.source import source_settings
from glassmoe.training.start import FEED_FORWARD, complete
from text_files import made_up_texts, prepared
from tiny_runs import Interrupt, assert_same_bits, stop_after, tiny

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 40, "initializer_range": 0.3}
FAMILIES = {
    "gpt2": (GPT2Config, {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "initializer_range": 0.3}, 320),
    # Its embedding has more rows than the tokenizer has ids, as Pythia's has.
    "pythia": (GPTNeoXConfig, {**SIZES, "num_attention_heads": 2, "intermediate_size": 64}, 328),
    "llama": (
        LlamaConfig,
        {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 44},
        320,
    ),
}


ENDS = 7
"""The Llama's eos, which is not its bos."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "corpus"
    prepared(folder, made_up_texts(150), valid_share=0.2)
    return folder


@pytest.fixture(scope="module")
def sources(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    kind = Corpus.open(text).kind
    made = {}
    for name, (config, settings, vocab_size) in FAMILIES.items():
        torch.manual_seed(1)
        made[name] = tmp_path_factory.mktemp(name)
        model = AutoModelForCausalLM.from_config(
            config(
                **settings,
                vocab_size=vocab_size,
                bos_token_id=kind.start,
                eos_token_id=ENDS if name == "llama" else kind.start,
            )
        )
        model.save_pretrained(made[name])
        tokenizer_of(kind, 40).save_pretrained(made[name])
    return made


@pytest.fixture(scope="module")
def texts(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Text prepared with each source's tokenizer, as a user prepares it."""
    folder = tmp_path_factory.mktemp("texts")
    for name, source in sources.items():
        prepared(folder / name, made_up_texts(150), str(source), valid_share=0.2)
    return {name: folder / name for name in sources}


def words(name: str, sources: dict[str, Path], texts: dict[str, Path], out: Path, *more: object) -> list[str]:
    brief = "--train.steps 2 --train.batch_rows 4 --train.micro_rows 4 --train.eval_rows 8 --train.precision fp32"
    given = ["upcycle", sources[name], "--config", f"moex-from-{name}", "--data.path", texts[name], "--out", out]
    return [*map(str, given), *brief.split(), *map(str, more)]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_recipe_takes_its_shape_from_the_source(
    name: str,
    sources: dict[str, Path],
    texts: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    given = words(name, sources, texts, out)
    assert cli.main(given) == 0
    told = capsys.readouterr().err
    assert "rows are packed:40 instead of packed:" in told and "the source's context is 40" in told
    config, receipt = configuration.load(out / "config.yaml"), read_start(out)
    assert receipt is not None
    model = config.model
    assert (model.layers, model.width, model.heads, model.context) == (2, 16, 4 if name == "llama" else 2, 40)
    assert (model.ffn, model.gated, model.activation) == ("moe-x", name == "llama", None)
    assert (config.start.shape, config.start.replace_layers, config.data.rows) == ("model", [0, 1], "packed:40")
    loss = receipt.valid_loss
    assert receipt.jump == loss["copied"] - loss["source"] != 0
    assert f"so the function is too: {receipt.jump:+.4f})" in told
    # The source's loss by transformers' own model, on the same rows.
    theirs = AutoModelForCausalLM.from_pretrained(sources[name]).eval()
    ids = torch.from_numpy(Corpus.open(texts[name]).split("valid").data[: 40 * 8].astype("int64")).view(8, 40)
    with torch.no_grad():
        assert loss["source"] == pytest.approx(float(theirs(input_ids=ids, labels=ids).loss), rel=1e-4)
    # The same command again is the same run, and so is its own config.yaml, which needs the source no more.
    assert cli.main(given) == 0
    again = ["train", "--config", str(out / "config.yaml"), "--out", str(out)]
    assert cli.main(again) == 0
    layers = own_layers(load_subject(str(out), own=True).model).values()
    assert [layer.expert_hidden for layer in layers] == [44 if name == "llama" else 64] * 2


@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_of_an_earlier_version_loads_resumes_and_goes_on(
    name: str, sources: dict[str, Path], texts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These versions made a decoder of ours of the source. Here it lies in a folder of its own, from which a run
    starts; its configuration then gets the form that it had."""
    theirs = AutoModelForCausalLM.from_pretrained(sources[name]).eval()
    kind, folder, run = Corpus.open(texts[name]).kind, tmp_path / "decoder", tmp_path / "run"
    unused = theirs.config.vocab_size - kind.size
    about = {"tokens": "text", "tokenizer_sha256": kind.tokenizer_sha256, "unused_ids": unused}
    imported = imported_model(theirs.config, theirs.state_dict(), **about, bos_token_id=kind.start, eos_token_id=ENDS)
    imported.save_pretrained(folder)
    tokenizer_of(kind, 40).save_pretrained(folder)
    config = tiny(texts[name])
    config.data = replace(config.data, rows="packed:33", tokens="text")
    config.model, config.start = ModelConfig(num_experts=4), StartConfig(source=str(folder), shape="source")
    whole = train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(4, patch)
        with pytest.raises(Interrupt):
            train(config, run)
    shutil.rmtree(folder)
    file = run / "config.yaml"
    file.write_text(file.read_text().replace(str(folder), str(sources[name])))
    assert "replace_layers" not in file.read_text()
    assert cli.main(["train", str(file), "--out", str(run)]) == 0
    assert_same_bits(whole, run)
    subject = load_subject(str(run), own=True)
    assert isinstance(subject.model, GlassForCausalLM) and subject.kind().size == kind.size
    ids = torch.randint(0, 320, (3, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference = (imported(input_ids=ids).logits - theirs(input_ids=ids).logits).abs().max()
    assert difference < 1e-5
    # It is a source, as every decoder of ours.
    config.start = StartConfig(source=str(run), shape="source")
    receipt = read_start(train(config, tmp_path / "on"))
    assert receipt is not None and [layer["kind"] for layer in receipt.layers] == ["same", "same"]
    assert receipt.source_config["start"]["source"] == str(sources[name])


@torch.no_grad()
def test_what_steering_raises_are_tokens_though_the_embedding_has_more_rows(
    sources: dict[str, Path], texts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    padded = tmp_path / "padded"
    model = AutoModelForCausalLM.from_pretrained(sources["pythia"])
    model.lm_head.weight[320:] *= 30  # the likeliest of all
    model.save_pretrained(padded)
    for file in sources["pythia"].glob("tokenizer*"):
        (padded / file.name).write_bytes(file.read_bytes())
    steer = ["--layer", "1", "--feature", "3", "--add", "50", "--prompt", "dog", "--tokens", "4"]
    assert cli.main(["steer", str(padded), *steer]) == 0, capsys.readouterr().err
    assert cli.main(words("pythia", {"pythia": padded}, texts, tmp_path / "run", "--train.steps", 0)) == 0
    assert cli.main(["steer", str(tmp_path / "run"), *steer]) == 0, capsys.readouterr().err


def test_mistakes(
    sources: dict[str, Path], texts: dict[str, Path], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(given: list[str]) -> str:
        assert cli.main(given) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        return line

    out = tmp_path / "out"
    other = tmp_path / "other"
    prepared(other, made_up_texts(50, seed=5), "train:320", valid_share=0.3)
    assert "another tokenizer" in said(words("llama", sources, {"llama": other}, out))
    assert "model.width is 64, but 16 in the source" in said(words("llama", sources, texts, out, "--model.width", 64))
    assert "start.source is missing" in said(
        ["train", "--config", "moex-from-llama", "--data.path", str(text), "--out", str(out)]
    )
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in ("config.json", "model.safetensors"):
        (bare / file).write_bytes((sources["llama"] / file).read_bytes())
    assert "has no tokenizer beside its weights" in said(words("llama", {"llama": bare}, texts, out))
    assert not out.exists() or {path.name for path in out.iterdir()} <= {"config.yaml", "state"}
    decoder = train(
        replace(tiny(text, "gelu"), data=replace(tiny(text).data, tokens="text", rows="packed:33")), tmp_path / "ours"
    )
    given = ["upcycle", str(decoder), "--layers", "1", "--data", str(text), "--out", str(out)]
    assert "start.replace_layers [1] names layers of a model that glassmoe did not train" in said(given)


def test_rows_longer_than_the_context_are_refused(text: Path, tmp_path: Path) -> None:
    config = tiny(text, "gelu")
    config.data = replace(config.data, rows="packed:33", tokens="text")
    config.model.context = 32
    with pytest.raises(ValueError, match=r"rows of 33 tokens are longer than model.context 32; .* packed:32"):
        train(config, tmp_path / "run")
    config.model.context = 64
    assert load_subject(str(train(config, tmp_path / "run")), own=True).model.config.context == 64


def test_the_shape_of_a_run_of_ours(noise_games: Path, tmp_path: Path) -> None:
    """The source's width of a layer becomes an expert's; ReLU experts need no other activation."""
    source = train(tiny(noise_games, "relu", steps=1), tmp_path / "dense")
    start = StartConfig(source=str(source), shape="source")
    settings = source_settings(str(source))
    config = complete(RunConfig(data=tiny(noise_games).data, model=ModelConfig(num_experts=4), start=start), settings)
    assert (config.model.width, config.model.active_width, config.model.gated) == (16, 64, False)
    assert config.model.context == 64 and config.start == StartConfig(source=str(source))
    switch = replace(config, model=ModelConfig(ffn="switch"), start=start)
    assert complete(switch, settings).model.activation == "relu"
    assert {*SHARED, *FEED_FORWARD} <= {field.name for field in fields(ModelConfig)}
