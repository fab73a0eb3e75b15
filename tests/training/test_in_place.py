"""Runs that replace layers of a transformers model: eight families, exact starts, resuming, verbs, and what is
refused."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import glassmoe
from glassmoe import config as configuration
from glassmoe.cli.main import main
from glassmoe.config import ModelConfig
from glassmoe.data.corpus import Corpus, Rows
from glassmoe.measure.routing import routing
from glassmoe.measure.specialisation import experts_of
from glassmoe.model.replacing import replacement_settings
from glassmoe.model.subject import load_subject, place_in
from glassmoe.text.tokens import load_tokenizer, text_kind
from glassmoe.training.batches import PassRows
from glassmoe.training.inplace import distillation
from glassmoe.training.records import read_start
from glassmoe.training.run import tokenizer_of
from text_files import made_up_texts, prepared
from tiny_runs import Interrupt, assert_same_bits, lines, stop_after

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
USUAL = {**SMALL, "max_position_embeddings": 40}
GROUPED = {**USUAL, "num_key_value_heads": 1}
GEMMA = {**GROUPED, "head_dim": 8}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**GROUPED, "tie_word_embeddings": True}),
    "llama with linear rotary scaling": (
        "Llama",
        {**GROUPED, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 8}),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": 8}),
    "gemma2": ("Gemma2", GEMMA),
    "gemma3": ("Gemma3Text", GEMMA),
    "phi": ("Phi", USUAL),
    "phi3": ("Phi3", {**GROUPED, "pad_token_id": 0}),
    "olmo2": ("Olmo2", USUAL),
    "smollm3": ("SmolLM3", {**GROUPED, "pad_token_id": 0}),
    "gpt2": ("GPT2", {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 40}),
    "neox": ("GPTNeoX", USUAL),
    "opt": (
        "OPT",
        {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "ffn_dim": 24, "word_embed_proj_dim": 16},
    ),
    "olmoe": ("Olmoe", {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "pad_token_id": 0}),
    "bloom": ("Bloom", {"hidden_size": 16, "n_layer": 3, "n_head": 2}),
}
BRIEF = (
    "--steps 2 --batch_rows 4 --micro_rows 4 --eval_rows 8 --eval_every 2 --log_every 1 --checkpoint_every 1 "
    "--precision fp32 --rows packed:33"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "corpus"
    prepared(folder, made_up_texts(50))
    tokenizer_of(Corpus.open(folder).kind, 40).save_pretrained(folder.parent / "tokenizer")
    return folder.parent / "tokenizer"


@pytest.fixture(scope="module")
def sources(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A random model of a family, with text that is prepared with its tokenizer in its folder `text`."""
    kind, made = text_kind(*load_tokenizer(tokenizer)), {}

    def source(name: str, **more: Any) -> Path:
        key = f"{name} {more}"
        if key not in made:
            torch.manual_seed(1)
            config_class, settings = FAMILIES[name]
            ids = {"vocab_size": kind.size, "bos_token_id": kind.start, "eos_token_id": kind.start}
            config = getattr(transformers, f"{config_class}Config")(**{**settings, **ids, **more})
            model = AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                for p in model.parameters():
                    p.normal_(0, 0.3)
            made[key] = tmp_path_factory.mktemp("source") / name.split()[0]
            model.save_pretrained(made[key])
            for file in tokenizer.iterdir():
                (made[key] / file.name).write_bytes(file.read_bytes())
            prepared(made[key] / "text", made_up_texts(150), str(made[key]), valid_share=0.2)
        return made[key]

    return source


def upcycle(source: Path, out: Path, *words: object) -> int:
    return main([*map(str, ["upcycle", source, "--data", source / "text", "--out", out, *BRIEF.split(), *words])])


def test_a_model_whose_sizes_and_ends_are_in_a_nested_configuration(tokenizer: Path, tmp_path: Path) -> None:
    """Gemma 3 that reads images too: its top configuration has no eos_token_id."""
    kind = text_kind(*load_tokenizer(tokenizer))
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = {**GEMMA, "vocab_size": kind.size, "bos_token_id": kind.start, "eos_token_id": [kind.start, 3]}
    config = transformers.Gemma3Config(
        text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    model = AutoModelForCausalLM.from_config(config)
    source = tmp_path / "source"
    model.save_pretrained(source)
    for file in tokenizer.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    prepared(source / "text", made_up_texts(150), str(source), valid_share=0.2)
    assert upcycle(source, tmp_path / "run", "--layers", "1", "--ffn", "switch", "--num_experts", "2") == 0
    assert glassmoe.load(tmp_path / "run").torch_model.config.get_text_config().eos_token_id == [kind.start, 3]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("opt", "olmoe")])
@torch.no_grad()
def test_a_copy_computes_what_its_source_computes(name: str, sources: Callable[..., Path], tmp_path: Path) -> None:
    source, out = sources(name), tmp_path / "run"
    words = ["--layers", "1-2", "--ffn", "switch", "--num_experts", "4", "--noise", "0", "--steps", "0"]
    assert upcycle(source, out, *words) == 0
    receipt = read_start(out)
    assert receipt is not None and receipt.difference < 1e-5 and receipt.jump == pytest.approx(0, abs=1e-5)
    assert [(part["layer"], part["kind"], part["exact"]) for part in receipt.layers] == [
        (1, "experts", True),
        (2, "experts", True),
    ]
    theirs = AutoModelForCausalLM.from_pretrained(source).eval()
    opened = glassmoe.load(out)
    assert list(opened) == ["1/switch", "2/switch"]
    assert isinstance(opened.torch_model, type(theirs))
    ids = torch.randint(0, 300, (3, 40), generator=torch.Generator().manual_seed(1))
    expected = theirs(input_ids=ids).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(opened.torch_model(input_ids=ids).logits, expected, rtol=0, atol=1e-5)
    prompt = {"attention_mask": torch.ones(1, 8, dtype=torch.long), "max_new_tokens": 10, "do_sample": False}
    prompt |= {"pad_token_id": 0, "eos_token_id": None}
    made = opened.torch_model.generate(ids[:1, :8], **prompt)
    assert torch.equal(made, theirs.generate(ids[:1, :8], **prompt))


def test_a_run_that_died_goes_on_to_the_same_bits_without_its_source(
    sources: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.symlink_to(sources("qwen2"))
    words = ["--layers", "1", "--steps", "4", "--checkpoint_every", "2", "--data", str(sources("qwen2") / "text")]
    assert upcycle(source, tmp_path / "whole", *words) == 0
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Interrupt):
            upcycle(source, tmp_path / "broken", *words)
    source.unlink()
    assert upcycle(source, tmp_path / "broken", *words) == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "broken")
    assert lines(tmp_path / "whole")[-1]["valid_loss"] < read_start(tmp_path / "whole").valid_loss["start"]
    # So does its own configuration, and another is refused.
    again = ["train", str(tmp_path / "whole/config.yaml"), "--out", str(tmp_path / "whole")]
    assert main(again) == 0
    assert main([*again, "--model.num_experts", "4"]) == 2


def test_distillation_learns_what_the_source_computes_and_only_the_new_layers_learn(
    sources: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, whole = sources("llama"), tmp_path / "whole"
    words = [
        "--layers",
        "1-2",
        "--objective",
        "distill",
        "--learn",
        "layers",
        "--steps",
        "16",
        "--log_every",
        "2",
        "--eval_every",
        "16",
        "--checkpoint_every",
        "10",
    ]
    words += ["--lr", "0.01", "--muon_lr", "0.01", "--warmup_steps", "2", "--weight_decay", "0"]
    assert upcycle(source, whole, *words) == 0
    first, last = lines(whole)[0], lines(whole)[-1]
    assert last["loss"] < first["loss"] and last["mse"] < first["mse"]
    theirs, ours = (load_subject(str(path)).model.state_dict() for path in (source, whole))
    changed = {name for name, weight in theirs.items() if name in ours and not torch.equal(weight, ours[name])}
    assert not changed and any(".layers.2.mlp.layer.w_enc" in name for name in ours)
    with monkeypatch.context() as patch:
        stop_after(10, patch)
        with pytest.raises(Interrupt):
            upcycle(source, tmp_path / "broken", *words)
    assert upcycle(source, tmp_path / "broken", *words) == 0
    assert_same_bits(whole, tmp_path / "broken")
    # Activations that are computed again change nothing but the memory.
    again = tmp_path / "recomputed"
    assert upcycle(source, again, *words, "--recompute", "true") == 0
    assert lines(again)[0]["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert lines(again)[0]["balance"] == pytest.approx(first["balance"], rel=1e-5)
    # A run goes on with another objective, and a dense ReLU layer becomes experts exactly.
    on = tmp_path / "on"
    assert main(["upcycle", str(whole), "--data", str(source / "text"), "--out", str(on), *BRIEF.split()]) == 0
    receipt, config = read_start(on), configuration.load(on / "config.yaml")
    assert receipt is not None and {part["kind"] for part in receipt.layers} == {"same"} and receipt.difference == 0
    assert config.start.replace_layers == [1, 2] and receipt.source_tokens == 16 * 4 * 32
    assert upcycle(source, tmp_path / "relu", "--layers", "0,2", "--ffn", "reglu") == 0
    words = ["--data", str(source / "text"), *BRIEF.split(), "--ffn", "moe-x", "--steps", "0"]
    assert main(["upcycle", str(tmp_path / "relu"), *words, "--out", str(tmp_path / "mixture")]) == 0
    receipt = read_start(tmp_path / "mixture")
    assert receipt is not None and {part["kind"] for part in receipt.layers} == {"experts"}
    assert receipt.difference < 1e-5 and list(glassmoe.load(tmp_path / "mixture")) == ["0/moe-x", "2/moe-x"]


def test_the_loss_of_distillation_is_its_definition(sources: Callable[..., Path], tmp_path: Path) -> None:
    """Against the definitions on positions with a label, and with its gradient."""
    assert upcycle(sources("llama"), tmp_path / "run", "--layers", "0,2", "--steps", "0") == 0
    teacher, student = (load_subject(str(path)).model for path in (sources("llama"), tmp_path / "run"))
    weight = student.model.layers[2].mlp.layer.w_dec.requires_grad_()
    places = [place_in(student, layer, "mlp-out") for layer in (0, 2)]
    tokens = torch.randint(0, 320, (3, 9), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([9, 5, 1])
    divergence, error = distillation(student, teacher, student, places, PassRows(tokens, lengths, lengths))
    found = torch.autograd.grad(divergence + error, weight)
    kl, squares, variances = 0.0, [0.0, 0.0], [0.0, 0.0]
    outputs: dict[Any, list[torch.Tensor]] = {}
    for model in (teacher, student):
        for layer in (0, 2):
            kept = outputs.setdefault((model is student, layer), [])
            model.model.layers[layer].mlp.register_forward_hook(lambda _, __, out, kept=kept: kept.append(out[0]))
    for row, count in ((tokens[:1, :8], 8), (tokens[1:2, :4], 4)):
        p, q = (torch.softmax(model(input_ids=row).logits[0], -1) for model in (teacher, student))
        assert len(p) == count
        kl = kl + (p * (p / q).log()).sum()
    for at, layer in enumerate((0, 2)):
        y, x = (torch.cat(outputs[mine, layer]) for mine in (False, True))
        squares[at], variances[at] = ((x - y) ** 2).sum(), ((y - y.mean(0)) ** 2).sum()
    expected = (squares[0] / variances[0] + squares[1] / variances[1]) / 2
    torch.testing.assert_close((divergence, error), (kl, expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, torch.autograd.grad(kl + expected, weight), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "bloom"])
def test_every_verb_reads_such_a_run(
    name: str, sources: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "run", str(sources(name) / "text")
    assert upcycle(sources(name), out, "--layers", "1") == 0
    capsys.readouterr()

    def said(*words: object) -> str:
        assert main([*map(str, words)]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert json.loads(said("eval", "ppl", out, "--json"))["tokens"] > 0
    assert said("generate", out, "--prompt", "the cat", "--tokens", 5).startswith("the cat")
    model, corpus = load_subject(str(out), own=True).model, Corpus.open(data)
    (layer,) = routing(model, Rows(corpus.split("valid"), "packed:33"), max_tokens=200).layers
    assert layer.layer == 1 and len(layer.load) == 8
    rows, lengths = Rows(corpus.split("valid"), "packed:33").batch(range(4))
    (expert,) = experts_of(model, rows, lengths, corpus.kind).layers
    assert expert.layer == 1
    said("report", out)
    assert "moe-x" in (out / "report.html").read_text() and "layer 1" in (out / "report.html").read_text()
    said("explain", out, "--layer", 1, "--features", 5, "--tokens", 2000, "--judge", "none")
    said("explore", out, "--out", tmp_path / "site")
    assert "moe-x" in (tmp_path / "site/index.html").read_text()
    opened = glassmoe.load(out)
    strongest = opened.features("the cat runs").top(1)[-1][0][0]
    ids = torch.tensor([opened.tokenize("the cat runs")])
    with torch.no_grad():
        before = opened.torch_model(input_ids=ids).logits
        with opened.edit(1, strongest, ablate=True):
            assert not torch.equal(opened.torch_model(input_ids=ids).logits, before)
        with opened.edit(1, strongest, scale=1.0):
            torch.testing.assert_close(opened.torch_model(input_ids=ids).logits, before, rtol=0, atol=1e-4)
    assert list(glassmoe.load(out, layers=[0, 1])) == ["0/neurons", "1/moe-x"]
    steer = ["--layer", 1, "--feature", strongest, "--add", 5, "--prompt", "dog", "--tokens", 4]
    said("steer", out, *steer)
    fit = [
        "--layer",
        "1",
        "--coders",
        "transcoder",
        "--features",
        "64",
        "--k",
        "2",
        "--tokens",
        "128",
        "--batch-tokens",
        "64",
        "--context",
        "16",
    ]
    measures = {"boards": "boards measure", "board-probes": "probe of boards", "legal-moves": "legal-move rate"}
    for verb, measure in measures.items():
        assert main(["eval", verb, str(out)]) == 2
        assert f"the {measure} reads chess games, but this model reads text" in capsys.readouterr().err
    said("decompose", out, "--data", data, "--out", tmp_path / "coders", *fit)
    assert list(glassmoe.load(tmp_path / "coders")) == ["1/transcoder-k2"]


OUTSIDE = """
import json, sys
sys.modules["glassmoe"] = None  # as where it is not installed
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
found = []
for folder, path in json.loads(sys.argv[1]):
    kept = {"trust_remote_code": True} | ({} if "bloom" in folder else {"attn_implementation": "sdpa"})
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, **kept), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer("the cat runs")["input_ids"]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        features = model.get_submodule(path).layer.features(torch.ones(3, 16)).values.sum()
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    made = model.generate(ids, **settings)
    assert torch.equal(made, model.generate(ids, use_cache=False, **settings))
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **kept)
    with torch.no_grad():
        near = torch.nn.functional.cosine_similarity(half(input_ids=ids).logits.float(), logits, dim=-1).min()
    half.generate(ids, **settings)
    model.save_pretrained(folder + "-again")
    again = AutoModelForCausalLM.from_pretrained(folder + "-again", trust_remote_code=True)
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, logits, rtol=0, atol=1e-5)
    found.append([ids.tolist(), logits.double().sum(-1).tolist(), made.tolist(), float(features), float(near)])
assert not any(name.startswith("glassmoe.") for name in sys.modules)
print(json.dumps(found))
"""


def test_an_exported_folder_opens_without_glassmoe(sources: Callable[..., Path], tmp_path: Path) -> None:
    folders = []
    for name, ffn, layer in (
        ("llama", "moe-x", 2),
        ("gpt2", "switch", 0),
        ("bloom", "moe-x", 1),
        ("gemma3", "reglu", 1),
    ):
        run, out = tmp_path / name, tmp_path / f"{name}-out"
        assert upcycle(sources(name), run, "--layers", layer, "--ffn", ffn) == 0
        assert main(["hub", "export", str(run), "--out", str(out)]) == 0
        card = (out / "README.md").read_text()
        assert f"MLPs of layers {layer} were replaced by `{ffn}`" in card and "transformer.py" not in os.listdir(out)
        folders.append((out, place_in(load_subject(out).model, layer, "mlp").module))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", OUTSIDE, json.dumps([[str(folder), path] for folder, path in folders])]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for (folder, path), (ids, logits, made, features, near) in zip(folders, found, strict=True):
        model = load_subject(str(folder), "cpu").model
        given = torch.tensor(ids)
        with torch.no_grad():
            here = model(input_ids=given).logits.double().sum(-1)
            read = float(model.get_submodule(path).layer.features(torch.ones(3, 16)).values.sum())
        torch.testing.assert_close(here, torch.tensor(logits, dtype=torch.float64), rtol=0, atol=1e-3)
        assert read == pytest.approx(features, rel=1e-5, abs=1e-5) and near > 0.98
        again = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=6, pad_token_id=0)
        assert again.tolist() == made


def test_mistakes(sources: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"

    def said(source: Path, *words: object) -> str:
        capsys.readouterr()
        assert upcycle(source, out, "--data", sources("llama") / "text", *words) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        return line

    def changed(name: str, **settings: Any) -> Path:
        folder = tmp_path / f"changed {len(list(tmp_path.iterdir()))}"
        shutil.copytree(sources(name), folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **settings}))
        return folder

    llama = sources("llama")
    assert "layer 3 is not in this model: it has layers 0 to 2" in said(llama, "--layers", "1-3")
    assert "layers is 'x'; expected whole numbers" in said(llama, "--layers", "x")
    quantised = changed("llama", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert "are quantised (bitsandbytes); give the model with ordinary weights" in said(quantised)
    more = tmp_path / "more tokens"
    shutil.copytree(llama, more)
    extended = AutoTokenizer.from_pretrained(more)
    extended.add_tokens(["<new>"])
    extended.save_pretrained(more)
    assert "has 321 ids, but the model only 320; put back the tokenizer" in said(more)
    biased = sources("llama", mlp_bias=True)
    assert "is gated and has biases in its encoder" in said(biased)
    assert "cannot become a relu layer; give one of geglu, swiglu, reglu, switch, moe-x" in said(llama, "--ffn", "relu")
    assert "model.width is 64, but 16 in the source" in said(llama, "--model.width", 64)
    assert "layer 0: the MLP model.layers.0.mlp, a OlmoeSparseMoeBlock, is of unknown form" in said(sources("olmoe"))
    assert "has an activation that glassmoe does not have; known are gelu" in said(
        sources("gpt2", activation_function="tanh")
    )
    assert "the MLPs of a opt model are not known by name; no module of a layer is an MLP" in said(sources("opt"))
    assert not out.exists() or {path.name for path in out.iterdir()} <= {"config.yaml", "state"}


def test_an_mlp_that_returns_a_tuple_is_refused(sources: Callable[..., Path]) -> None:
    class Pair(torch.nn.Module):
        def __init__(self, mlp: torch.nn.Module):
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj, self.act_fn = (
                mlp.gate_proj,
                mlp.up_proj,
                mlp.down_proj,
                mlp.act_fn,
            )

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)), None

    model = load_subject(str(sources("llama"))).model
    model.model.layers[1].mlp = Pair(model.model.layers[1].mlp)
    with pytest.raises(ValueError, match=r"layer 1: the MLP model.layers.1.mlp, a Pair, returns a tuple, and only"):
        replacement_settings(model, ModelConfig(), [1])
