"""Several coders of a model that exists, in one pass over it: transformers' families, text, resume, splice, verbs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from glassmoe import config as configuration
from glassmoe.cli.main import main
from glassmoe.coders.configuration import CoderConfig, FitConfig, SweepConfig, matched_experts
from glassmoe.coders.files import load_coder
from glassmoe.coders.fit import fit
from glassmoe.coders.sweep import sweep as settings_of_sweep
from glassmoe.coders.task import CoderTask
from glassmoe.config import DataConfig, OptimizerConfig, TrainConfig
from glassmoe.data.corpus import Corpus, Rows
from glassmoe.inspect.edit import spliced
from glassmoe.inspect.readers import open_coders, open_readers
from glassmoe.measure.fidelity import FidelityResult, evaluate_fidelity, fidelity
from glassmoe.measure.saved import read_measure
from glassmoe.model import Features, FeedForward
from glassmoe.model.subject import activations, load_subject, place_in, weights_digest
from glassmoe.training.distributed import Processes
from glassmoe.training.language import train
from text_files import jsonl, made_up_texts, prepared, random_gpt2
from tiny_runs import Interrupt, assert_same_bits, lines, stop_after, tiny

VOCABULARY = 300


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared text of made-up words, with its tokenizer of about 300 ids."""
    folder = tmp_path_factory.mktemp("text")
    prepared(folder / "data", made_up_texts(300), tokenizer=f"train:{VOCABULARY}", valid_share=0.3)
    return folder / "data"


def families() -> dict[str, tuple[torch.nn.Module, str]]:
    """A random model of each family, and the path of its second MLP."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": VOCABULARY}
    rotary = {**small, "intermediate_size": 24, "max_position_embeddings": 40}
    gpt2 = GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=VOCABULARY, n_positions=40)
    opt = OPTConfig(**small, ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=40)
    return {
        "gpt2": (GPT2LMHeadModel(gpt2), "transformer.h.1.mlp"),
        "gpt_neox": (GPTNeoXForCausalLM(GPTNeoXConfig(**rotary)), "gpt_neox.layers.1.mlp"),
        "llama": (LlamaForCausalLM(LlamaConfig(**rotary, num_key_value_heads=1)), "model.layers.1.mlp"),
        "opt": (OPTForCausalLM(opt), "model.decoder.layers.1.fc2"),
    }


@pytest.fixture(scope="module")
def gpt2(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of three layers with random weights, with the tokenizer of the text."""
    return random_gpt2(tmp_path_factory.mktemp("gpt2"), text)


def sweep(source: Path, text: Path, coders: list[CoderConfig], pool: int = 2, **settings: object) -> SweepConfig:
    training = {"steps": 8, "batch_rows": 4, "micro_rows": 2, "eval_every": 4, "eval_rows": 4, "checkpoint_every": 2}
    return SweepConfig(
        source=str(source),
        coders=coders,
        data=DataConfig(path=str(text), rows="packed:33", tokens="text"),
        pool=pool,
        optimizer=OptimizerConfig(name="adamw", lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0, warmup_steps=2),
        train=TrainConfig(**{**training, "log_every": 1, "precision": "fp32", **settings}),
    )


SOME = [
    CoderConfig(layer=0, kind="mxd", features=40, hidden=24, k=4),
    CoderConfig(layer=2, kind="mxd", features=40, hidden=24, k=4, glu=True, activation="silu"),
    CoderConfig(layer=2, kind="transcoder", features=48, k=4),
    CoderConfig(layer=2, kind="skip-transcoder", features=48, k=8),
    CoderConfig(layer=1, kind="topk", site="mlp-out", features=48, k=4),
    CoderConfig(layer=1, kind="jumprelu", site="stream", features=48),
]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "opt"])
def test_what_is_read_is_what_the_modules_meet(family: str) -> None:
    model, path = families()[family]
    model.eval()
    module = path.replace(".1.", ".{}.") if family == "opt" else None
    out, stream = (place_in(model, 1, site, module) for site in ("mlp-out", "stream"))
    assert out.module == path and stream.module == path.rpartition(".")[0]
    seen: dict[str, torch.Tensor] = {}
    module_of = model.get_submodule(path)
    module_of.register_forward_hook(lambda _, args, made: seen.update(x=args[0], y=made))
    hidden = model.get_submodule(stream.module)
    hidden.register_forward_hook(lambda _, __, made: seen.update(s=made[0] if isinstance(made, tuple) else made))
    tokens = torch.randint(0, VOCABULARY, (2, 7))
    with torch.no_grad():
        model(input_ids=tokens)
    if family == "opt":  # its output layer reads another width than it writes
        with pytest.raises(ValueError, match=r"fc2 reads 32 numbers per token and writes 16"):
            place_in(model, 1, "mlp", module)
        found = activations(model, [out, stream], tokens)
    else:
        mlp = place_in(model, 1, "mlp", module)
        assert mlp.module == path
        found = activations(model, [mlp, out, stream], tokens)
        torch.testing.assert_close(found[mlp].x, seen["x"])
        torch.testing.assert_close(found[mlp].y, seen["y"])
    torch.testing.assert_close(found[out].x.flatten(0, 1), seen["y"].flatten(0, -2))
    torch.testing.assert_close(found[stream].y, seen["s"])


def test_the_forward_pass_ends_at_the_last_place() -> None:
    model, _ = families()["gpt2"]
    reached = []
    model.transformer.h[2].register_forward_pre_hook(lambda *_: reached.append(2))
    activations(model, [place_in(model, 0, "mlp"), place_in(model, 1, "mlp")], torch.zeros(1, 3, dtype=torch.long))
    assert not reached


def test_coders_of_a_sweep_are_what_they_are_alone(gpt2: Path, text: Path, tmp_path: Path) -> None:
    config = sweep(gpt2, text, SOME)
    fit(config, tmp_path / "sweep")
    for name, alone in config.fits().items():
        fit(alone, tmp_path / name)
        together = load_file(tmp_path / "sweep" / name / "coder.safetensors")
        for key, tensor in load_file(tmp_path / name / "coder.safetensors").items():
            torch.testing.assert_close(together[key], tensor, rtol=1e-5, atol=1e-7)
        coder, found = load_coder(tmp_path / "sweep" / name)
        assert found.coder.layer == alone.coder.layer and coder.num_features == alone.coder.features
    last = lines(tmp_path / "sweep")[-1]
    assert last["step"] == 8 and set(last["valid_coders"]) == set(config.fits())
    assert math.isfinite(last["loss"])


def test_a_sweep_resumes_to_the_same_bits_within_a_pool(
    gpt2: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sweep(gpt2, text, SOME, pool=3)  # the pool that is met again begins before the checkpoint
    fit(config, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Interrupt):
        stop_after(4, patched)
        fit(config, tmp_path / "parts")
    torch.manual_seed(99)
    fit(config, tmp_path / "parts")
    for name in config.fits():
        whole, parts = (load_file(tmp_path / each / name / "coder.safetensors") for each in ("whole", "parts"))
        assert all(torch.equal(tensor, parts[key]) for key, tensor in whole.items()), name
    assert lines(tmp_path / "whole")[-1] == lines(tmp_path / "parts")[-1]


def test_a_pool_holds_the_tokens_of_its_steps_once(gpt2: Path, text: Path, tmp_path: Path) -> None:
    config = sweep(gpt2, text, SOME[:1], pool=4)
    task = CoderTask(config, tmp_path, torch.device("cpu"), Processes())
    plain = CoderTask(sweep(gpt2, text, SOME[:1], pool=1), tmp_path, torch.device("cpu"), Processes())
    (place,) = task.places
    pooled = torch.cat([task._from_pool(step)[place].x for step in range(4, 8)])
    rows = np.concatenate([plain._indices(step) for step in range(4, 8)])
    expected = plain._read(*plain.rows["train"].batch(rows))[place].x
    assert not torch.equal(pooled, expected) and task.batch(5).tokens == 4 * 32
    key = [tuple(row) for row in pooled.double().round(decimals=3).tolist()]
    assert sorted(key) == sorted(tuple(row) for row in expected.double().round(decimals=3).tolist())
    assert torch.equal(task._from_pool(6)[place].x, task._from_pool(6)[place].x)


def test_fidelity_against_a_forward_pass_by_hand(gpt2: Path, text: Path, tmp_path: Path) -> None:
    """The coder written into the module itself: the loss of transformers' own model is the spliced one."""
    config = sweep(gpt2, text, SOME[2:4])
    fit(config, tmp_path / "sweep")
    found = evaluate_fidelity(*open_coders(tmp_path / "sweep"), max_rows=5)
    assert list(found) == ["2/skip-transcoder-k8", "2/transcoder-k4"]
    rows = Rows(Corpus.open(text).split("valid"), "packed:33")
    tokens = torch.from_numpy(rows.batch(range(5))[0].astype(np.int64))
    for name, figures in found.items():
        coder, _ = load_coder(tmp_path / "sweep" / name)
        model = AutoModelForCausalLM.from_pretrained(gpt2, dtype=torch.float32).eval()

        class Stand(torch.nn.Module):
            def __init__(self, coder: torch.nn.Module):
                super().__init__()
                self.coder = coder

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                flat = x.flatten(0, 1)
                return self.coder.write(self.coder.features(flat)).view_as(x)

        with torch.no_grad():
            plain = float(model(input_ids=tokens, labels=tokens).loss)
            x, y = activations(model, [place_in(model, 2, "mlp")], tokens[:, :-1])[place_in(model, 2, "mlp")]
            y = y.flatten(0, 1).double()
            error = y - coder.write(coder.features(x.flatten(0, 1))).double()
            model.transformer.h[2].mlp = Stand(coder)
            loss = float(model(input_ids=tokens, labels=tokens).loss)
        assert figures.loss == pytest.approx(plain, rel=1e-5)
        assert figures.loss_spliced == pytest.approx(loss, rel=1e-5)
        expected = error.square().sum() / (y - y.mean(0)).square().sum()
        assert figures.normalised_mse == pytest.approx(float(expected), rel=1e-4)
        record = json.loads((tmp_path / "sweep" / name / "measures/fidelity.json").read_text())
        assert record["values"]["loss_spliced"] == figures.loss_spliced and figures.dead is not None


def test_generation_and_edits_under_a_coder(gpt2: Path, text: Path, tmp_path: Path) -> None:
    fit(sweep(gpt2, text, SOME[:1], steps=40, eval_every=40, checkpoint_every=40), tmp_path / "one")
    coder, _ = load_coder(tmp_path / "one/0/mxd-k4")
    model = load_subject(str(gpt2)).model
    place, prompt = place_in(model, 0, "mlp"), torch.randint(0, VOCABULARY, (1, 5))
    plain = model(input_ids=prompt).logits
    with spliced(model, coder, place):
        through = model(input_ids=prompt).logits
        made = model.generate(prompt, max_new_tokens=5, do_sample=False, pad_token_id=0)
    naive = prompt
    with spliced(model, coder, place):
        for _ in range(5):
            step = model(input_ids=naive, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            naive = torch.cat([naive, step], 1)
    assert torch.equal(made, naive[:, : made.shape[1]]) and not torch.equal(plain, through)
    x = activations(model, [place], prompt)[place].x.flatten(0, 1)
    feature = int(coder.features(x).ids[0, 0])
    with spliced(model, coder, place, lambda f: f.add(feature, 50.0)):
        pushed = model(input_ids=prompt).logits
    assert not torch.allclose(pushed, through)
    with spliced(model, coder, place, lambda f: f.scale(feature, 1.0)):
        torch.testing.assert_close(model(input_ids=prompt).logits, through)
    assert torch.equal(model(input_ids=prompt).logits, plain)


def test_features_of_the_layers_themselves_lose_nothing(
    gpt2: Path, text: Path, noise_games: Path, tmp_path: Path
) -> None:
    run = train(tiny(noise_games, "moe-x"), tmp_path / "run")
    found = evaluate_fidelity(*open_readers(str(run), own=False), max_rows=4)
    assert list(found) == ["0/moe-x", "1/moe-x"]
    for each in found.values():
        assert each.normalised_mse < 1e-9 and each.loss_increase == pytest.approx(0, abs=1e-5)
        assert each.loss_recovered == pytest.approx(1, abs=1e-2)
    saved = read_measure(run, "fidelity")
    assert saved is not None and saved.result(FidelityResult) == found
    neurons = evaluate_fidelity(*open_readers(str(gpt2), own=False), data=str(text), max_rows=4)
    assert list(neurons) == ["0/neurons", "1/neurons", "2/neurons"] and neurons["0/neurons"].parameters > 0
    assert neurons["0/neurons"].loss_increase == pytest.approx(0, abs=1e-5)
    coders = [CoderConfig(layer=1, kind="transcoder", features=48, k=4)]
    config = sweep(run, noise_games, coders, steps=4)
    config.data = DataConfig(path=str(noise_games), rows="games:48")
    fit(config, tmp_path / "coders")
    figures = evaluate_fidelity(*open_coders(tmp_path / "coders"), max_rows=4)["1/transcoder-k4"]
    assert figures.l0 <= 4 and math.isfinite(figures.loss_increase)


def test_a_perfect_stand_in_recovers_all(gpt2: Path, text: Path) -> None:
    model = load_subject(str(gpt2)).model
    place = place_in(model, 1, "mlp")
    mlp = model.get_submodule(place.module)

    class Same(FeedForward):
        num_features = mlp.c_fc.nf

        def features(self, x: torch.Tensor) -> object:
            hidden = mlp.act(mlp.c_fc(x))
            return Features(hidden, hidden.shape[1])

        def write(self, f: object) -> torch.Tensor:
            return mlp.c_proj(f.values)

    rows = Rows(Corpus.open(text).split("valid"), "packed:33")
    found = fidelity(model, {"same": (Same(), place)}, rows, [0, 1], 2)["same"]
    assert found.loss_increase == pytest.approx(0, abs=1e-5) and found.variance_explained == pytest.approx(1)


@pytest.mark.parametrize(
    ("kind", "settings", "paths"),
    [
        (GPT2Config, {"n_embd": 768, "n_layer": 12, "n_head": 12}, "transformer.h.8.mlp"),
        (GPTNeoXConfig, {"hidden_size": 1024, "num_hidden_layers": 24}, "gpt_neox.layers.15.mlp"),
        (GPTNeoXConfig, {"hidden_size": 2048, "num_hidden_layers": 24}, "gpt_neox.layers.15.mlp"),
        (
            LlamaConfig,
            {"hidden_size": 3072, "num_hidden_layers": 28, "intermediate_size": 8192, "num_attention_heads": 24,
             "num_key_value_heads": 8, "vocab_size": 128256},
            "model.layers.15.mlp",
        ),
    ],
    ids=["gpt2-124m", "pythia-410m", "pythia-1.4b", "llama-3.2-3b"],
)  # fmt: skip
def test_the_papers_models_have_their_places_and_counts(kind: type, settings: dict, paths: str) -> None:
    config = kind(**settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layer = int(paths.split(".")[2])
    assert place_in(model, layer, "mlp").module == paths
    width = config.hidden_size
    out = dict(model.named_modules())[paths]
    assert sum(p.numel() for p in out.parameters()) > 0
    expected = {768: 21_490, 1024: 28_658, 2048: 57_330, 3072: 86_015}
    hidden, glu = (8192, True) if kind is LlamaConfig else (4 * width, False)
    assert matched_experts(width, hidden, glu, paper_counts=True) == expected[width]


def test_mistakes_are_named(gpt2: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(words: str) -> str:
        assert main(words.split()) == 2, words
        return capsys.readouterr().err

    start = f"decompose {gpt2} --data.path {text} --out {tmp_path / 'x'}"
    assert "it has layers 0 to 2" in said(f"{start} --layer 7 --context 32")
    assert "did you mean transformer.h.1.mlp" in said(f"{start} --layer 1 --context 32 --module transformer.h.{{}}.mpl")
    assert "unknown coder 'mdx'; did you mean mxd?" in said(f"{start} --layer 1 --coders mdx")
    assert "layers is 'middle'; expected whole numbers" in said(f"{start} --layer middle")
    assert "more than the" in said(f"{start} --layer 1 --coders transcoder --features 8 --k 9 --context 32")
    assert "its context is 40" in said(f"{start} --layer 1 --context 64")
    assert "coders of a sweep differ" in said(f"{start} --layer 1,1 --context 32")
    assert "neither config.yaml nor config.json" in said(f"eval fidelity {tmp_path}")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((gpt2 / "config.json").read_text())
    assert "could not be loaded" in said(f"decompose {bare} --layer 1 --data.path {text} --out {tmp_path / 'y'}")
    opt = tmp_path / "opt"
    families()["opt"][0].save_pretrained(opt)
    assert "not known by name; no module of a layer is an MLP that reads and writes 16 numbers" in said(
        f"decompose {opt} --layer 1 --context 32 --data.path {text} --out {tmp_path / 'z'}"
    )


def test_the_papers_models_have_recipes(
    gpt2: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = configuration.recipes("decompose")
    known.pop("smollm2-135m")  # the one of quickstart-llm
    assert set(known) == {"mxd-gpt2", "mxd-pythia-410m", "mxd-pythia-1.4b", "mxd-llama-3.2-3b"}
    for path in known.values():
        config = configuration.load_as(SweepConfig, path)
        assert config.train.steps * config.train.batch_rows * 128 == pytest.approx(480e6, rel=1e-4)
        assert [coder.label for coder in config.coders] == ["mxd", "transcoder", "skip-transcoder"]
    own = sweep(gpt2, text, SOME[:2])
    (tmp_path / "own.yaml").write_text(configuration.to_yaml(own))
    words = f"decompose --config {tmp_path / 'own.yaml'} --out {tmp_path / 'out'} --precision fp32"
    assert main(words.split()) == 0
    fit(own, tmp_path / "two")
    one, two = (load_file(tmp_path / each / "0/mxd-k4/coder.safetensors") for each in ("out", "two"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    capsys.readouterr()
    assert main([*words.split(), "--k", "8"]) == 2
    assert "sets k already" in capsys.readouterr().err
    assert main(["decompose", "--config", "mxd-gpt3", "--out", "x"]) == 2
    assert "did you mean mxd-gpt2?" in capsys.readouterr().err
    assert main(["decompose", str(gpt2), "--out", "x"]) == 2
    assert "needs a model and layers, or a recipe" in capsys.readouterr().err


def test_a_coder_belongs_to_its_weights(gpt2: Path, text: Path, tmp_path: Path) -> None:
    source = tmp_path / "model"
    model = AutoModelForCausalLM.from_pretrained(gpt2)
    model.save_pretrained(source)
    config = sweep(source, text, SOME[:1])
    fit(config, tmp_path / "coders")
    with torch.no_grad():
        model.transformer.wte.weight[3, 3] += 1
    model.save_pretrained(source)
    with pytest.raises(ValueError, match="fitted to other weights than"):
        evaluate_fidelity(*open_coders(tmp_path / "coders"), max_rows=2)
    with pytest.raises(ValueError, match="fitted to other weights than"):
        fit(config, tmp_path / "coders")
    found = evaluate_fidelity(*open_coders(tmp_path / "coders", str(gpt2)), max_rows=2)
    assert weights_digest(load_subject(str(gpt2)).model) and len(found) == 1


def test_activations_that_are_not_finite_are_reported(gpt2: Path, text: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(gpt2)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[0, 0] = math.nan
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(RuntimeError, match=r"activations at transformer.h.0.mlp are not all finite"):
        fit(sweep(tmp_path / "model", text, SOME[:1]), tmp_path / "out")


def test_the_verbs_from_raw_text_to_figures(gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/some.jsonl").write_text(jsonl(made_up_texts(300)), encoding="utf-8")
    words = (
        f"decompose {gpt2} --layers 0,2 --coders mxd,transcoder,sae-topk --k 2,4 --context 32 "
        f"--tokens 8192 --data.path {tmp_path / 'texts'} --out {tmp_path / 'out'} --json"
    )
    assert main(words.split()) == 0
    captured = capsys.readouterr()
    made = json.loads(captured.out)["coders"]
    assert "mxd-k2 with" in captured.err and "mxd-k4 with" in captured.err
    assert len(made) == 12 and all(Path(each, "coder.safetensors").exists() for each in made)
    assert main(words.split()) == 0  # finished: nothing is made again
    capsys.readouterr()
    assert main(f"eval fidelity {tmp_path / 'out'} --rows 4".split()) == 0
    shown = capsys.readouterr().out
    assert "2/sae-topk-k4" in shown and "normalised MSE" in shown
    assert main(f"eval fidelity {tmp_path / 'out/0/mxd-k2'} --rows 4 --json".split()) == 0
    (figures,) = json.loads(capsys.readouterr().out).values()
    assert figures["k"] == 2 and figures["layer"] == 0


def test_a_fit_of_the_chess_kind_is_still_one_coder(gpt2: Path, text: Path, tmp_path: Path) -> None:
    config = sweep(gpt2, text, SOME[:1]).fits()["0/mxd-k4"]
    assert isinstance(config, FitConfig)
    out = fit(config, tmp_path / "one")
    assert list(evaluate_fidelity(*open_coders(out), max_rows=2)) == ["one"]
    assert_same_bits(out, fit(config, tmp_path / "two"), "coder.safetensors")


def test_a_model_in_memory_is_decomposed_as_from_its_folder(gpt2: Path, tmp_path: Path) -> None:
    """Objects of transformers in place of a path: the same coders, from the same text."""
    file = tmp_path / "more.jsonl"
    file.write_text(jsonl(made_up_texts(80, seed=5)), encoding="utf-8")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(gpt2), AutoTokenizer.from_pretrained(gpt2)
    objects = load_subject((model, tokenizer))
    assert load_subject(objects) is objects and not any(p.requires_grad for p in model.parameters())
    assert objects.name == f"gpt2-{weights_digest(model)[:12]}" and objects.kind().vocabulary
    for name, source in (("folder", gpt2), ("objects", objects)):
        config = settings_of_sweep(
            source, layers=[1], coders=["mxd"], ks=[4], data=file, out=tmp_path / name, tokens=2048, context=32
        )
        fit(config, tmp_path / name, source)
    assert config.source == objects.name
    one, other = (load_file(tmp_path / name / "1/mxd-k4/coder.safetensors") for name in ("folder", "objects"))
    assert all(torch.equal(other[key], tensor) for key, tensor in one.items())


def test_objects_that_are_no_model_are_refused(gpt2: Path) -> None:
    with pytest.raises(ValueError, match="expected a causal language model of transformers, got Linear"):
        load_subject((torch.nn.Linear(2, 2), None))
    model = load_subject(gpt2).model
    with pytest.raises(ValueError, match="expected a tokenizer that is backed by the tokenizers library, got str"):
        load_subject((model, "gpt2"))
    with pytest.raises(ValueError, match="is a gpt2 model; this verb reads models that glassmoe trained; glassmoe upc"):
        load_subject((model, None), own=True)
