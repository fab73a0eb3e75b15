"""Tiny models of many families of transformers: which module their MLP is, what it adds, its form and its sizes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from frozen_models import random_model
from glassmoe.cli.main import main
from glassmoe.coders.sweep import sweep
from glassmoe.data.corpus import Corpus, Rows
from glassmoe.inspect.sample import continuations
from glassmoe.measure.fidelity import fidelity
from glassmoe.measure.perplexity import usual_cut
from glassmoe.measure.text_perplexity import evaluate_texts
from glassmoe.model import families
from glassmoe.model.loss import count_labels, next_token_loss
from glassmoe.model.modules import mlp_like
from glassmoe.model.neurons import neurons
from glassmoe.model.subject import Subject, activations, load_subject, place_in, replaced
from glassmoe.text.evaluation import EvaluationText
from glassmoe.training.run import tokenizer_of
from model_families import FAMILIES, MIXTURES, SMALL, TOKENS, UNITS, USUAL, VOCABULARY, WIDTH, gemma3, of_family
from text_files import jsonl, made_up_texts, prepared


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    prepared(folder / "data", made_up_texts(200), tokenizer=f"train:{VOCABULARY}", valid_share=0.3)
    return folder / "data"


def saved(model: Any, folder: Path, text: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer_of(Corpus.open(text).kind, 40).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_neurons_and_form_are_those_of_the_mlp(family: str) -> None:
    model = of_family(family)
    subject = Subject.of("x", model)
    place, layer = subject.place(1, "mlp"), neurons(subject, 1)
    module = model.get_submodule(place.module)
    read: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_hook(
            lambda _, args, kwargs, out: read.update(
                x=args[0] if args else next(iter(kwargs.values())), y=out.clone(), residual=args[1:]
            ),
            with_kwargs=True,
        )
    ]
    model(input_ids=TOKENS)
    for handle in handles:
        handle.remove()
    y = read["y"] - read["residual"][0] if read["residual"] else read["y"]
    x = read["x"].flatten(0, 1)
    torch.testing.assert_close(layer.write(layer.features(x)), y.flatten(0, 1), rtol=1e-4, atol=1e-4)
    caught = activations(model, [place], TOKENS)[place]
    torch.testing.assert_close(caught.x.flatten(0, 1), x)
    torch.testing.assert_close(caught.y, y)
    assert subject.mlp_form(1) == (*FAMILIES[family][2], None)
    assert layer.w_enc.shape == (FAMILIES[family][2][0], WIDTH) == (layer.num_features, subject.width)
    # Row f of the encoder is what neuron f reads: with it in x, neuron f changes.
    moved = x + layer.w_enc[3]
    assert (layer.features(moved).values - layer.features(x).values)[:, 3].abs().max() > 0


@pytest.mark.parametrize("family", ["bloom", "mpt", "falcon", "gemma2"])
@torch.no_grad()
def test_zeros_and_reconstructions_replace_what_the_mlp_adds(family: str, text: Path) -> None:
    model = of_family(family)
    subject = Subject.of("x", model)
    rows = Rows(Corpus.open(text).split("valid"), "packed:17")
    place, layer = subject.place(1, "mlp"), neurons(subject, 1)
    measured = fidelity(model, {"own": (layer, place)}, rows, np.arange(6), 4)["own"]
    tokens, lengths = (torch.from_numpy(array).long() for array in rows.batch(np.arange(6)))
    module: Any = model.get_submodule(place.module)
    usual = module.forward

    def nothing(x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        return torch.zeros_like(x) if residual is None else residual

    module.forward = nothing
    zero = float(next_token_loss(model, tokens, lengths)[0]) / count_labels(lengths.numpy())
    module.forward = usual
    assert measured.loss_zero == pytest.approx(zero, rel=1e-5)
    assert abs(measured.loss_zero - measured.loss) > 1e-3
    # An MLP's own neurons rebuild what it adds.
    assert measured.loss_spliced == pytest.approx(measured.loss, rel=1e-4)
    assert measured.normalised_mse < 1e-6
    # The stream after the block is something else.
    stream = subject.place(1, "stream")
    assert stream.module == place.module.rpartition(".")[0]
    both = activations(model, [place, stream], TOKENS)
    assert not torch.allclose(both[place].y, both[stream].y, atol=1e-2)


@torch.no_grad()
def test_activations_of_several_layers_are_not_overwritten() -> None:
    """Blocks of Falcon add to what their MLP returned, in place."""
    model = of_family("falcon")
    places = [place_in(model, layer, "mlp") for layer in range(3)]
    together = activations(model, places, TOKENS)
    for place in places:
        alone = activations(model, [place], TOKENS)[place]
        assert torch.equal(together[place].x, alone.x) and torch.equal(together[place].y, alone.y)


@torch.no_grad()
def test_a_named_module_that_adds_the_stream() -> None:
    """DBRX: the module of attention and its norms returns the stream, and is refused with the name of what it adds."""
    ffn = {"hidden_size": WIDTH, "ffn_hidden_size": UNITS, "moe_num_experts": 2, "moe_top_k": 1}
    dbrx = random_model(
        "DbrxConfig",
        {"d_model": WIDTH, "n_heads": 2, "n_layers": 2, "max_seq_len": 40, "vocab_size": VOCABULARY,
         "ffn_config": ffn, "attn_config": {"kv_n_heads": 1, "clip_qkv": 8, "rope_theta": 1e4}},
    )  # fmt: skip
    path = "transformer.blocks.{}.norm_attn_norm"
    with pytest.raises(
        ValueError, match=r"1.norm_attn_norm adds its own input .*: transformer.blocks.1.norm_attn_norm.attn"
    ):
        place_in(dbrx, 1, "mlp", path)
    assert place_in(dbrx, 1, "mlp").module == "transformer.blocks.1.ffn"
    assert families.context_of(dbrx) == 40
    # A block of Mamba is its mixer with the stream.
    mamba = random_model("MambaConfig", {"hidden_size": WIDTH, "num_hidden_layers": 2, "vocab_size": VOCABULARY})
    with pytest.raises(ValueError, match=r"backbone.layers.1 adds its own input .*: backbone.layers.1.mixer$"):
        place_in(mamba, 1, "mlp-out", "backbone.layers.{}")
    assert place_in(mamba, 1, "mlp-out", "backbone.layers.{}.mixer").module == "backbone.layers.1.mixer"
    with pytest.raises(ValueError, match=r"mamba model are not known by name; .* such as backbone.layers.\{\}.mixer$"):
        place_in(mamba, 1, "mlp")
    # Named by its path, an MLP that takes the stream is recognised as in its family.
    bloom = of_family("bloom")
    known = place_in(bloom, 1, "mlp")
    assert known.residual and place_in(bloom, 1, "mlp", "transformer.h.{}.mlp") == known
    with replaced(bloom, known, lambda _, y: y):
        once = bloom(input_ids=TOKENS).logits
    torch.testing.assert_close(once, bloom(input_ids=TOKENS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("module", "site", "numbers"),
    [
        ("fc1", "mlp", "reads 16 numbers per token and writes 32"),
        ("fc2", "mlp", "reads 32 numbers per token and writes 16"),
        ("fc1", "mlp-out", "writes 32 numbers"),
    ],
)
def test_a_module_of_two_widths_is_refused_before_the_fit(module: str, site: Any, numbers: str) -> None:
    opt = random_model("OPTConfig", {**SMALL, "ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 40})
    with pytest.raises(ValueError, match=rf"layers.1.{module} {numbers}.* the 16 of the residual stream") as error:
        place_in(opt, 1, site, f"model.decoder.layers.{{}}.{module}")
    assert "fc" not in str(error.value).partition("such as")[2]


def test_an_unknown_family_gets_only_advice_that_works() -> None:
    opt = random_model("OPTConfig", {**SMALL, "ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 40})
    for site in ("mlp", "mlp-out"):
        with pytest.raises(ValueError, match=r"opt model are not known by name; .*--site stream") as error:
            place_in(opt, 1, site)  # type: ignore[arg-type]
        assert "fc" not in str(error.value)
    assert place_in(opt, 1, "stream").module == "model.decoder.layers.1"
    with pytest.raises(ValueError, match=r"no module 'model.decoder.layers.1.fc3'; did you mean") as error:
        place_in(opt, 1, "mlp", "model.decoder.layers.{}.fc3")
    assert "fc1" not in str(error.value) and "fc2" not in str(error.value)
    assert mlp_like(of_family("mistral"), WIDTH, 3) == ["model.layers.{}.mlp"]


@pytest.mark.parametrize("family", MIXTURES)
def test_what_is_assumed_of_a_mixture_is_reported(
    family: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(of_family(family), tmp_path / family, text)
    settings = sweep(str(folder), layers=[1], coders=["mxd"], ks=[4], data=text, features=256, out=tmp_path / "out")
    (coder,) = settings.coders
    assert (coder.hidden, coder.glu, coder.activation) == (UNITS, True, "silu")
    assert "mxd of layer 1: assumed 24 gated hidden units with activation silu" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"the neurons of a {family} model cannot be read"):
        neurons(load_subject(str(folder)), 1)


def test_an_activation_that_coders_lack_is_reported() -> None:
    model = random_model("PhiConfig", {**USUAL, "hidden_act": "relu2"})
    form = Subject.of("x", model).mlp_form(0)
    assert form[:3] == (UNITS, False, "gelu") and form.assumed is not None and "activation gelu" in form.assumed


@pytest.mark.parametrize("family", ["gemma2", "mistral", "mpt"])
def test_a_sweep_follows_the_mlp(family: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(of_family(family), tmp_path / family, text)
    settings = sweep(str(folder), layers=[0], coders=["mxd"], ks=[4], data=text, features=256, out=tmp_path / "out")
    (coder,) = settings.coders
    assert (coder.hidden, coder.glu, coder.activation) == FAMILIES[family][2]
    assert "assumed" not in capsys.readouterr().err


NAMES: dict[str, Callable[[], Any]] = {
    "mpt": lambda: of_family("mpt"),
    "gpt2": lambda: of_family("gpt2"),
    "gpt_neo": lambda: of_family("gpt_neo"),
    "gemma3": gemma3,
    "bloom": lambda: random_model(*FAMILIES["bloom"][:1], {**FAMILIES["bloom"][1], "seq_length": 40}),
}


@pytest.mark.parametrize("name", NAMES)
def test_sizes_by_any_name(name: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = NAMES[name]()
    folder = saved(model, tmp_path / name, text)
    subject = load_subject(str(folder))
    assert (subject.width, subject.layers, subject.context) == (WIDTH, 3, 40)
    assert subject.vocab_size >= VOCABULARY
    corpus = Corpus.open(text)
    assert usual_cut(subject.model, None, corpus) == "packed:40"
    result = evaluate_texts(subject, {}, [EvaluationText("t", made_up_texts(5), "t", "0" * 64, "", False)])
    assert result.texts[0].window == 40
    assert continuations(subject.model, "the cat", 3, kind=subject.kind())[0].startswith("the cat")
    out = tmp_path / "out"
    fit = "--layer 1 --coders mxd,sae-topk --features 128 --k 2 --tokens 128 --batch-tokens 64 --context 16"
    assert main(["decompose", str(folder), "--data.path", str(text), "--out", str(out), *fit.split()]) == 0
    capsys.readouterr()
    assert main(["eval", "fidelity", str(out), "--json"]) == 0
    assert {"1/mxd-k2", "1/sae-topk-k2"} <= json.loads(capsys.readouterr().out).keys()


def test_a_context_that_nothing_names(text: Path, tmp_path: Path) -> None:
    """The advice is --window, not a message of torch."""
    folder = saved(of_family("mpt"), tmp_path / "mpt", text)
    settings = json.loads((folder / "config.json").read_text())
    documents = tmp_path / "t.jsonl"
    documents.write_text(jsonl([" ".join(made_up_texts(30))]))
    subject = load_subject(str(folder))
    assert subject.context == 40
    unnamed = Subject(**{**vars(subject), "context": families.UNBOUNDED})
    long = [EvaluationText("t", [" ".join(made_up_texts(30))], "t", "0" * 64, "", False)]
    with pytest.raises(ValueError, match=r"cannot read 1,024 tokens at once, .* pass --window"):
        evaluate_texts(unnamed, {}, long)
    assert settings["max_seq_len"] == 40 and main(["eval", "ppl", str(folder), "--on", f"t={documents}"]) == 0
