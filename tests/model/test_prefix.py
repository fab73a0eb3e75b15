"""The first blocks of a model: what is read in them is what the whole model has there, and nothing else is opened."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen3Config,
)

import glassmoe
from glassmoe.cli.main import main
from glassmoe.coders.files import header
from glassmoe.model import loading
from glassmoe.model.loading import Loading
from glassmoe.model.subject import Subject, activations, load_subject, weights_digest
from text_files import made_up_texts, prepared, random_gpt2

LAYERS = 4
SMALL = {"hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "vocab_size": 64}
ROTARY = {**SMALL, "intermediate_size": 24, "max_position_embeddings": 40, "num_key_value_heads": 1}
FAMILIES: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(n_embd=16, n_layer=LAYERS, n_head=2, vocab_size=64, n_positions=40),
    "gpt_neox": GPTNeoXConfig(**{**SMALL, "intermediate_size": 24, "max_position_embeddings": 40}),
    "llama": LlamaConfig(**ROTARY),
    "tied": LlamaConfig(**ROTARY, tie_word_embeddings=True),
    "opt": OPTConfig(**SMALL, ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=40),
    "qwen3": Qwen3Config(**ROTARY, head_dim=8, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "gemma2": Gemma2Config(**ROTARY, head_dim=8, sliding_window=4),
}
TOKENS = torch.arange(36).view(3, 12) * 7 % 64


def saved(family: str, folder: Path, dtype: torch.dtype = torch.float32, shard: str = "4KB") -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family])
    for weight in model.parameters():
        weight.data.normal_(0, 0.3)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def read(of: Subject, layer: int) -> list[torch.Tensor]:
    known = of.model.config.model_type != "opt"  # its MLP has no module of its own
    places = [of.place(layer, site) for site in (("stream", "mlp", "mlp-out") if known else ("stream",))]
    found = activations(of.model, places, TOKENS)
    return [value for place in places for value in found[place]]


def remove_behind(folder: Path, layer: int) -> int:
    """Delete the files that hold nothing of the embeddings and the blocks up to `layer`; returns how many."""
    removed = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
        blocks = [part for name in names for part in name.split(".") if part.isdecimal()]
        if all(name in ("lm_head.weight", "embed_out.weight") for name in names) or (
            len(blocks) == len(names) and min(map(int, blocks)) > layer
        ):
            file.unlink()
            removed += 1
    return removed


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 2])
def test_what_is_read_is_what_the_whole_model_has(family: str, layer: int, tmp_path: Path) -> None:
    whole = load_subject(str(saved(family, tmp_path / "m")), "cpu")
    expected = read(whole, layer)
    assert remove_behind(tmp_path / "m", layer) > 0
    part = load_subject(str(tmp_path / "m"), "cpu", how=Loading(prefix=True), last=layer)
    assert (part.layers, part.blocks) == (LAYERS, layer + 1)
    assert all(torch.equal(a, b) for a, b in zip(read(part, layer), expected, strict=True))
    held = {name for name, p in part.model.named_parameters() if not p.is_meta}
    names = {name for name, _ in whole.model.named_parameters()}
    assert held < names and all(f".{n}." not in name for name in held for n in range(layer + 1, LAYERS))
    assert not held & {"lm_head.weight", "embed_out.weight"}
    with pytest.raises(ValueError, match=r"layer 3 of .* is not loaded, but the first"):
        part.place(3, "stream")
    with pytest.raises(ValueError, match=r"layer 4 is not in this model"):
        whole.place(4, "stream")
    # One file with all weights: those behind are not loaded either.
    shutil.rmtree(tmp_path / "m")
    saved(family, tmp_path / "m", shard="1GB")
    again = load_subject(str(tmp_path / "m"), "cpu", how=Loading(prefix=True), last=layer)
    assert {name for name, p in again.model.named_parameters() if not p.is_meta} == held
    assert all(torch.equal(a, b) for a, b in zip(read(again, layer), expected, strict=True))
    # The last layer needs the whole model.
    assert load_subject(str(tmp_path / "m"), "cpu", how=Loading(prefix=True), last=LAYERS - 1).blocks is None


def test_digests_tell_the_weights_that_are_read(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path / "m", shard="1GB")
    whole, part = load_subject(str(folder), "cpu"), load_subject(str(folder), "cpu", how=Loading(prefix=True), last=1)
    deeper = load_subject(str(folder), "cpu", how=Loading(prefix=True), last=2)
    assert part.digest().startswith("2:") and whole.digest() == weights_digest(whole.model)
    for subject in (whole, part, deeper):
        assert subject.has_weights(part.digest())
    assert not whole.has_weights("2:" + "0" * 64) and not part.has_weights("2:" + "0" * 64)
    for digest, what in ((whole.digest(), "the whole model"), (deeper.digest(), "its first 3 layers")):
        with pytest.raises(ValueError, match=rf"cannot compare the weights .* are of {what}; open it without prefix"):
            part.has_weights(digest)
    tensors = load_file(folder / "model.safetensors")
    for name, counts in (("model.layers.2.mlp.up_proj.weight", False), ("model.layers.1.mlp.up_proj.weight", True)):
        changed = {**tensors, name: tensors[name] + 1}
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
        assert load_subject(str(folder), "cpu").has_weights(part.digest()) is not counts
        assert not load_subject(str(folder), "cpu").has_weights(whole.digest())


def test_types_and_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved("llama", tmp_path / "m", torch.bfloat16)
    usual = load_subject(str(folder), "cpu")
    for how in (Loading("bfloat16"), Loading("auto"), Loading("auto", prefix=True), Loading("float16", "cpu")):
        subject = load_subject(str(folder), "cpu", how=how, last=1)
        expected = torch.float16 if how.dtype == "float16" else torch.bfloat16
        held = {p.dtype for p in subject.model.parameters() if not p.is_meta}
        assert held == {expected} and (subject.blocks is not None) is how.prefix
        for a, b in zip(read(subject, 1), read(usual, 1), strict=True):
            assert a.dtype == torch.float32
            torch.testing.assert_close(a, b, rtol=0.05, atol=0.05 * float(b.std()))
        # The same numbers are the same weights.
        assert how.dtype == "float16" or usual.has_weights(subject.digest())
    assert load_subject(str(folder), "cpu", how=Loading(device_map="auto", prefix=True), last=1).blocks == 2
    with pytest.raises(ValueError, match=r"does not fit on the devices of device_map 'meta'.*load less with prefix"):
        load_subject(str(folder), "cpu", how=Loading(device_map="meta"))
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r'device_map needs the package accelerate; install it with: pip install "gl'):
        load_subject(str(folder), "cpu", how=Loading(device_map="auto"))


def test_models_that_have_no_prefix_say_so(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path / "m", shard="1GB")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="has no weights in safetensors files, of which a part can be read"):
        load_subject(str(folder), "cpu", how=Loading(prefix=True), last=1)
    del weights["model.layers.1.mlp.up_proj.weight"]
    (folder / "pytorch_model.bin").unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights \(layers.1.mlp.up_proj.weight and 0 others"):
        load_subject(str(folder), "cpu", how=Loading(prefix=True), last=1)


def test_coders_of_a_prefix_are_those_of_the_whole_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(tmp_path / "text", made_up_texts(200), tokenizer="train:300", valid_share=0.4)
    model = random_gpt2(tmp_path / "gpt2", tmp_path / "text")
    words = f"decompose {model} --layers 0,1 --coders transcoder --k 4 --features 48 --tokens 1024 --batch-tokens 256"
    words += f" --context 32 --data {tmp_path / 'text'} --device cpu"
    for name, more in (("whole", ""), ("part", "--prefix true")):
        assert main(f"{words} --out {tmp_path / name} {more}".split()) == 0
    for layer in (0, 1):
        a, b = (load_file(tmp_path / name / f"{layer}/transcoder-k4/coder.safetensors") for name in ("whole", "part"))
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert header(tmp_path / "part/1/transcoder-k4")["source_sha256"].startswith("2:")
    for name in ("whole", "part"):
        explain = f"explain {tmp_path / name} --layer 1 --features 6 --tokens 2000 --per-decile 1 --silent 6"
        assert main(f"{explain} {'--prefix true' if name == 'part' else ''}".split()) == 0
    stores = [
        load_file(tmp_path / name / "features/1-transcoder-k4/examples.safetensors") for name in ("whole", "part")
    ]
    assert all(torch.equal(stores[0][key], stores[1][key]) for key in stores[0])
    lines = [(tmp_path / name / "explanations/1-transcoder-k4/rules.jsonl").read_text() for name in ("whole", "part")]
    assert lines[0] == lines[1]
    manifest = json.loads((tmp_path / "part/features/1-transcoder-k4/manifest.json").read_text())
    assert manifest["weights_sha256"].startswith("2:")

    part, whole = glassmoe.load(tmp_path / "part", prefix=True), glassmoe.load(tmp_path / "part")
    one, two = (each.features("of the", 1).to_dense() for each in (part, whole))
    assert torch.equal(one, two)
    for refused in (
        lambda: part.generate("of"),
        lambda: part.trace("of"),
        lambda: part.edit(1, 3, ablate=True).__enter__(),
    ):
        with pytest.raises(
            ValueError, match=r"needs the whole model, and only the first 2 of 3 layers of .* are loaded"
        ):
            refused()
    assert whole.generate("of", tokens=2).texts
    capsys.readouterr()
    assert main(f"explain {tmp_path / 'whole'} --layer 1 --prefix true".split()) == 2
    assert "are of the whole model; open it without prefix" in capsys.readouterr().err


def test_models_of_glassmoe_are_read_whole(tmp_path: Path) -> None:
    shape = {"width": 16, "layers": 2, "heads": 2, "active_width": 32, "num_experts": 4, "context": 24}
    from glassmoe.model import GlassConfig, GlassForCausalLM

    GlassForCausalLM(GlassConfig(ffn="gelu", **shape)).save_pretrained(tmp_path / "run")
    with pytest.raises(ValueError, match="dtype, device_map and prefix are for models of transformers"):
        load_subject(str(tmp_path / "run"), how=Loading("bfloat16"))
