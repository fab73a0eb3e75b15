"""Coders as folders of SAELens and sparsify and back: each layout against a forward pass written out number by number
from what the packages say of it, round trips, what is folded, every mistake, the verb. The packages themselves are met
in test_formats_peers.py."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fault_driver import accesses, killed_at
from glassmoe.cli.main import main
from glassmoe.coders.configuration import CoderConfig, FitConfig
from glassmoe.coders.files import load_coder, save_coder
from glassmoe.coders.formats import export_coder, export_coders, import_coder
from glassmoe.coders.layouts import place
from glassmoe.inspect.readers import open_coders
from glassmoe.locks import LOCK
from glassmoe.measure.fidelity import evaluate_fidelity
from glassmoe.model.subject import load_subject
from glassmoe.training.language import train
from made_coders import FEATURES, WIDTH, K, assert_alike, bare_gpt2, made_coder, seen, tokens_read
from text_files import made_up_texts, prepared, random_gpt2
from tiny_runs import tiny

SAELENS = ["topk", "batchtopk", "jumprelu", "l1", "p-anneal", "gated", "transcoder"]
SPARSIFY = ["topk", "transcoder", "skip-transcoder"]
BACK = {"p-anneal": "l1", "batchtopk": "jumprelu"}
"""Kinds that come back as another, which computes the same."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare_gpt2(tmp_path_factory.mktemp("model") / "gpt2")


def relu(number: float) -> float:
    return max(number, 0.0)


def greatest(numbers: list[float], k: int) -> set[int]:
    return set(sorted(range(len(numbers)), key=lambda i: -numbers[i])[:k])


def saelens_by_hand(folder: Path, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What SAELens 6 says of its architectures, for one token and one feature after another."""
    cfg = json.loads((folder / "cfg.json").read_text())
    w = {name: t.tolist() for name, t in load_file(folder / "sae_weights.safetensors").items()}
    assert cfg["normalize_activations"] == cfg["reshape_activations"] == "none" and cfg["dtype"] == "float32"
    architecture, width, features = cfg["architecture"], cfg["d_in"], cfg["d_sae"]
    rows, outputs = [], []
    for x in x_TD.tolist():
        centre = w["b_dec"] if cfg["apply_b_dec_to_input"] else [0.0] * width
        read = [sum((x[i] - centre[i]) * w["W_enc"][i][f] for i in range(width)) for f in range(features)]
        if architecture == "gated":
            gate = [read[f] + w["b_gate"][f] > 0 for f in range(features)]
            f_F = [relu(math.exp(w["r_mag"][f]) * read[f] + w["b_mag"][f]) * gate[f] for f in range(features)]
        else:
            z = [read[f] + w["b_enc"][f] for f in range(features)]
            kept = greatest(z, cfg["k"]) if architecture == "topk" else set(range(features))
            if architecture == "jumprelu":
                kept = {f for f in range(features) if z[f] > w["threshold"][f]}
            f_F = [relu(z[f]) if f in kept else 0.0 for f in range(features)]
        y = [sum(f_F[f] * w["W_dec"][f][i] for f in range(features)) + w["b_dec"][i] for i in range(width)]
        if architecture == "skip_transcoder":
            y = [y[i] + sum(w["W_skip"][i][j] * x[j] for j in range(width)) for i in range(width)]
        rows.append(f_F)
        outputs.append(y)
    return torch.tensor(rows), torch.tensor(outputs)


def sparsify_by_hand(folder: Path, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of sparsify 1.3."""
    cfg = json.loads((folder / "cfg.json").read_text())
    w = {name: t.tolist() for name, t in load_file(folder / "sae.safetensors").items()}
    assert cfg["activation"] == "topk" and ("W_skip" in w) == cfg["skip_connection"]
    width, features = cfg["d_in"], cfg["num_latents"]
    rows, outputs = [], []
    for x in x_TD.tolist():
        centre = [0.0] * width if cfg["transcode"] else w["b_dec"]
        z = [
            relu(sum(w["encoder.weight"][f][i] * (x[i] - centre[i]) for i in range(width)) + w["encoder.bias"][f])
            for f in range(features)
        ]
        kept = greatest(z, cfg["k"])
        f_F = [z[f] if f in kept else 0.0 for f in range(features)]
        y = [sum(f_F[f] * w["W_dec"][f][i] for f in range(features)) + w["b_dec"][i] for i in range(width)]
        if cfg["skip_connection"]:
            y = [y[i] + sum(w["W_skip"][i][j] * x[j] for j in range(width)) for i in range(width)]
        rows.append(f_F)
        outputs.append(y)
    return torch.tensor(rows), torch.tensor(outputs)


def round_trip(
    kind: str, format: str, by_hand: Callable, normalise: str, model: Path, tmp_path: Path, **settings: object
) -> Path:
    """Out and in again; returns the directory of the coder that came back."""
    coder, x = made_coder(tmp_path / "coder", kind, model, normalise, **settings), tokens_read()
    (folder,), _ = export_coders(tmp_path / "coder", tmp_path / "out", format)
    assert_alike(by_hand(folder, x), seen(coder, x))
    back, config = load_coder(import_coder(folder, str(model), None, tmp_path / "back"))
    assert_alike(seen(back, x), seen(coder, x))
    expected = coder.config
    assert config.coder.kind == BACK.get(kind, kind) and config.coder.normalise == "none"
    assert (config.coder.layer, config.coder.site) == (expected.layer, expected.site)
    assert config.source == str(model) and config.train.steps == 0
    if kind in SPARSIFY:
        assert config.coder.k == expected.k
    if normalise == "none":
        for name, p in coder.named_parameters():
            if name != "log_theta":  # a threshold is a logarithm here and none there
                assert torch.equal(p, getattr(back, name)), name
    return folder


@pytest.mark.parametrize("normalise", ["none", "rms"])
@pytest.mark.parametrize("kind", SAELENS)
def test_saelens_and_back(kind: str, normalise: str, model: Path, tmp_path: Path) -> None:
    folder = round_trip(kind, "saelens", saelens_by_hand, normalise, model, tmp_path)
    assert folder == tmp_path / "out"
    assert {path.name for path in folder.iterdir()} == {"cfg.json", "sae_weights.safetensors"}
    metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
    assert metadata["model_name"] == str(model) and metadata["context_size"] == 32
    hooks = ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")
    expected = hooks if kind == "transcoder" else ("blocks.1.hook_resid_post", None)
    assert (metadata["hook_name"], metadata.get("hook_name_out")) == expected


@pytest.mark.parametrize("normalise", ["none", "rms"])
@pytest.mark.parametrize("kind", ["transcoder", "skip-transcoder"])
def test_transcoders_without_a_k_are_saelens_own(kind: str, normalise: str, model: Path, tmp_path: Path) -> None:
    folder = round_trip(kind, "saelens", saelens_by_hand, normalise, model, tmp_path, k=FEATURES)
    cfg = json.loads((folder / "cfg.json").read_text())
    assert cfg["architecture"] == kind.replace("-", "_") and cfg["d_out"] == WIDTH and "k" not in cfg


@pytest.mark.parametrize("normalise", ["none", "rms"])
@pytest.mark.parametrize("kind", SPARSIFY)
def test_sparsify_and_back(kind: str, normalise: str, model: Path, tmp_path: Path) -> None:
    folder = round_trip(kind, "sparsify", sparsify_by_hand, normalise, model, tmp_path)
    assert folder == tmp_path / "out" / ("h.1" if kind == "topk" else "h.1.mlp")
    assert {path.name for path in folder.iterdir()} == {"cfg.json", "sae.safetensors"}


@pytest.mark.parametrize("format", ["saelens", "sparsify"])
def test_an_mlps_output_is_named(format: str, model: Path, tmp_path: Path) -> None:
    made_coder(tmp_path / "coder", "topk", model, site="mlp-out")
    (folder,), _ = export_coders(tmp_path / "coder", tmp_path / "out", format)
    config = load_coder(import_coder(folder, str(model), None, tmp_path / "back"))[1].coder
    assert (config.layer, config.site) == (1, "mlp-out")
    # What is given outweighs what is named.
    config = load_coder(import_coder(folder, str(model), 2, tmp_path / "other", "stream"))[1].coder
    assert (config.layer, config.site) == (2, "stream")


def test_batchtopk_keeps_what_reaches_its_threshold(model: Path, tmp_path: Path) -> None:
    """`>=` here, `>` there: a feature that is the threshold itself, and its neighbours among the numbers of float32."""
    coder = made_coder(tmp_path / "coder", "batchtopk", model, features=WIDTH, k=2)
    t = coder.threshold
    ends = [torch.nextafter(t, t.new_tensor(end)) for end in (-torch.inf, torch.inf)]
    with torch.no_grad():
        coder.w_enc.copy_(torch.eye(WIDTH))
        coder.b_enc.zero_()
        coder.b_dec.zero_()
    x = torch.stack([ends[0], t, ends[1]]).unsqueeze(1).repeat(1, WIDTH)
    assert [(row > 0).all().item() for row in seen(coder, x)[0]] == [False, True, True]
    save_coder(tmp_path / "coder", coder, 100, "none")
    folder = export_coder(tmp_path / "coder", tmp_path / "out", "saelens")
    assert torch.equal(saelens_by_hand(folder, x)[0], seen(coder, x)[0])
    with torch.no_grad():
        coder.threshold.zero_()
    save_coder(tmp_path / "coder", coder, 100, "none")
    folder = export_coder(tmp_path / "coder", tmp_path / "zero", "saelens")
    assert not load_file(folder / "sae_weights.safetensors")["threshold"].any()


def exported(tmp_path: Path, kind: str, format: str, model: Path) -> Path:
    """The folder of a made-up coder, to be changed; the coder itself lies in `tmp_path`/coder."""
    kept = model.parent / f"{kind}-{format}"
    if not kept.exists():
        made_coder(kept / "coder", kind, model)
        export_coders(kept / "coder", kept / "out", format)
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    return next((tmp_path / "out").rglob("cfg.json")).parent


def change(folder: Path, tensors: dict | None = None, without: tuple[str, ...] = (), **settings: object) -> None:
    """Change a folder's settings (`metadata` is added to) and tensors; None takes a setting out."""
    cfg = json.loads((folder / "cfg.json").read_text())
    cfg |= {**settings, "metadata": {**cfg.get("metadata", {}), **settings.get("metadata", {})}}
    if "sae.safetensors" in {path.name for path in folder.iterdir()}:
        del cfg["metadata"]
    (folder / "cfg.json").write_text(json.dumps({key: value for key, value in cfg.items() if value is not None}))
    (path,) = folder.glob("*.safetensors")
    kept = {name: t for name, t in {**load_file(path), **(tensors or {})}.items() if name not in without}
    save_file(kept, path)


def drawn(folder: Path, *names: str) -> dict[str, torch.Tensor]:
    """Other numbers for these tensors of a folder."""
    (path,) = folder.glob("*.safetensors")
    given = load_file(path)
    return {name: torch.randn_like(given[name]) for name in names}


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "l1", "gated"])
def test_without_the_bias_taken_off(kind: str, model: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, kind, "saelens", model)
    change(folder, apply_b_dec_to_input=False)
    back, _ = load_coder(import_coder(folder, str(model), None, tmp_path / "back"))
    assert_alike(seen(back, tokens_read()), saelens_by_hand(folder, tokens_read()))
    assert bool(back.b_dec.any())


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_what_rebuilds_something_else_is_a_transcoder(
    architecture: str, centred: bool, model: Path, tmp_path: Path
) -> None:
    folder = exported(tmp_path, "transcoder", "saelens", model)
    change(folder, apply_b_dec_to_input=centred, architecture=architecture)
    back, config = load_coder(import_coder(folder, str(model), None, tmp_path / "back"))
    assert_alike(seen(back, tokens_read()), saelens_by_hand(folder, tokens_read()))
    assert config.coder.kind == "transcoder" and config.coder.k == (K if architecture == "topk" else FEATURES)


def test_norms_that_count_are_folded(model: Path, tmp_path: Path) -> None:
    """rescale_acts_by_decoder_norm: the k greatest of z ||w_dec||, which write unit rows. One row is zero."""
    folder = exported(tmp_path, "topk", "saelens", model)
    change(folder, tensors=drawn(folder, "W_dec"), rescale_acts_by_decoder_norm=True)
    w = load_file(folder / "sae_weights.safetensors")
    w["W_dec"][3] = 0
    change(folder, tensors=w)
    back, _ = load_coder(import_coder(folder, str(model), None, tmp_path / "back"))
    x = tokens_read()
    z_TF = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * w["W_dec"].norm(dim=1)
    chosen = z_TF.relu().topk(K, dim=1)
    f_TF = torch.zeros_like(z_TF).scatter(1, chosen.indices, chosen.values)
    rows_FD = torch.nn.functional.normalize(w["W_dec"], dim=1)
    if (f_TF[:, 3] > 0).any():
        pytest.fail("a feature of norm 0 is never above 0")
    assert_alike(seen(back, x), (f_TF, f_TF @ rows_FD + w["b_dec"]))


def test_thresholds_below_zero(model: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, "jumprelu", "saelens", model)
    change(folder, tensors={"threshold": torch.linspace(-1, 1, FEATURES)})
    back, _ = load_coder(import_coder(folder, str(model), None, tmp_path / "back"))
    assert_alike(seen(back, tokens_read()), saelens_by_hand(folder, tokens_read()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_numbers_of_other_types(dtype: torch.dtype, model: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, "topk", "saelens", model)
    w = load_file(folder / "sae_weights.safetensors")
    change(folder, tensors={name: t.to(dtype) for name, t in w.items()}, dtype=str(dtype).removeprefix("torch."))
    back, _ = load_coder(import_coder(folder, str(model), None, tmp_path / "back"))
    assert back.w_dec.dtype == torch.float32 and torch.equal(back.w_dec, w["W_dec"].to(dtype).float())


def test_sparsify_before_transcode_was_a_key(model: Path, tmp_path: Path) -> None:
    """Skip transcoders were told by their skip, and took b_dec off; other transcoders look like autoencoders."""
    folder = exported(tmp_path, "skip-transcoder", "sparsify", model)
    change(folder, transcode=False)
    back, config = load_coder(import_coder(folder, str(model), None, tmp_path / "back"))
    assert config.coder.kind == "skip-transcoder"
    assert_alike(seen(back, tokens_read()), sparsify_by_hand(folder, tokens_read()))
    change(folder, without=("W_skip",), skip_connection=False, transcode=None, num_latents=0, expansion_factor=2.5)
    with pytest.raises(ValueError, match=r"expansion_factor is 2\.5; expected a whole number above 0"):
        import_coder(folder, str(model), None, tmp_path / "x")
    change(folder, num_latents=FEATURES)
    cfg = json.loads((folder / "cfg.json").read_text())
    back, config = load_coder(import_coder(folder, str(model), None, tmp_path / "two", "mlp"))
    (folder / "cfg.json").write_text(json.dumps({**cfg, "transcode": False}))
    assert config.coder.kind == "transcoder"
    assert_alike(seen(back, tokens_read()), sparsify_by_hand(folder, tokens_read()))
    assert load_coder(import_coder(folder, str(model), None, tmp_path / "sae"))[1].coder.site == "mlp-out"


def test_names_of_places() -> None:
    for name, expected in {
        "layers.8": (8, "stream"),
        "h.11.mlp": (11, "mlp-out"),
        "layers.3.ffn": (3, "mlp-out"),
        "layers_8_mlp": (8, "mlp-out"),
        "model.layers.30": (30, "stream"),
        "blocks.7.hook_resid_post": (7, "stream"),
        "blocks.7.hook_out": (7, "stream"),
        "blocks.7.hook_resid_pre": (6, "stream"),
        "blocks.7.hook_mlp_out": (7, "mlp-out"),
        "blocks.0.hook_resid_pre": (0, None),
        "blocks.7.attn.hook_z": (7, None),
        "layers.1.self_attn": (1, None),
        "embed_tokens": (None, None),
        "players.3": (None, None),
        "": (None, None),
    }.items():
        assert place(name, for_mlp=False) == expected, name
    for name, expected in {
        "h.2.mlp": (2, "mlp"),
        "layers.2": (2, None),
        "blocks.2.mlp.hook_in": (2, "mlp"),
        # Without the norm's own weights, and before the norm.
        "blocks.2.ln2.hook_normalized": (2, None),
        "blocks.2.hook_mlp_in": (2, None),
    }.items():
        assert place(name, for_mlp=True) == expected, name


def test_a_seed_lies_in_the_folder_of_its_place(model: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, "transcoder", "sparsify", model)
    shutil.copytree(folder, tmp_path / "h.2.mlp/seed1")
    config = load_coder(import_coder(tmp_path / "h.2.mlp/seed1", str(model), None, tmp_path / "back"))[1]
    assert (config.coder.layer, config.coder.site) == (2, "mlp")


SAELENS_MISTAKES = [
    # what is changed, what is said
    ({"architecture": "matryoshka"}, "architecture is 'matryoshka'; expected one of standard, topk, .*inference_model"),
    ({"architecture": None}, "architecture is None; expected one of"),
    ({"architecture": ["topk"]}, "expected one of standard"),
    ({"metadata": {"sae_lens_version": "5.9.1"}}, "version is '5.9.1'; expected 6 or later: load it with SAELens 6"),
    ({"metadata": {"sae_lens_version": None}}, "version is None; expected 6 or later"),
    ({"l1_coefficient": 1.0}, "the key l1_coefficient of its cfg.json is not known .*; of a training checkpoint"),
    ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm', and only 'none' .*; fold it"),
    ({"normalize_activations": "expected_average_only_in"}, "only 'none' can be taken over; fold it into the weights"),
    ({"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z', .*; single heads of attention are not read"),
    ({"d_out": 32}, "d_out is 32, and only 16 can be taken over; a coder here reads and writes vectors of one width"),
    ({"d_in": "16"}, "d_in is '16'; expected a whole number above 0"),
    ({"d_sae": True}, "d_sae is True; expected a whole number above 0"),
    ({"d_sae": 41}, r"W_enc has the shape \(16, 40\), and cfg.json means \(16, 41\); fix one of the two"),
    ({"k": 41}, "k is 41; expected a whole number from 1 to 40"),
    ({"k": None}, "k is None; expected a whole number from 1 to 40"),
    ({"apply_b_dec_to_input": "no"}, "apply_b_dec_to_input is 'no'; expected true or false"),
    ({"architecture": "transcoder"}, "does not say that it belongs to .*; if it does, give --site"),
    (
        {"architecture": "jumprelu"},
        "there is no tensor threshold; expected W_enc, W_dec, b_dec, b_enc, threshold: give",
    ),
    ({"metadata": {"hook_name": "blocks.1.attn.hook_z"}}, "'blocks.1.attn.hook_z', which does not say .*give --site"),
    ({"metadata": {"hook_name": "blocks.9.hook_resid_post"}}, "layer 9 is not in this model: it has layers 0 to 2"),
    ({"metadata": {"hook_name": "blocks.0.hook_resid_pre"}}, "does not say that it belongs to the stream after"),
    ({"metadata": {"hook_name": "hook_embed"}}, "'hook_embed', which does not say which layer .*; give --layer"),
    ({"metadata": {"hook_name": None}}, "out: it does not say which layer it belongs to; give --layer"),
]


@pytest.mark.parametrize(("settings", "message"), SAELENS_MISTAKES)
def test_what_saelens_may_say_and_we_do_not_take(settings: dict, message: str, model: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, "topk", "saelens", model)
    change(folder, **settings)
    with pytest.raises(ValueError, match=message):
        import_coder(folder, str(model), None, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_places_that_two_hooks_disagree_about(model: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, "transcoder", "saelens", model)
    change(folder, metadata={"hook_name_out": "blocks.2.hook_mlp_out"})
    with pytest.raises(ValueError, match=r"'blocks.1.mlp.hook_in and blocks.2.hook_mlp_out', which does not say which"):
        import_coder(folder, str(model), None, tmp_path / "back")
    assert load_coder(import_coder(folder, str(model), 2, tmp_path / "back", "mlp"))[1].coder.layer == 2
    with pytest.raises(
        ValueError, match="architecture is skip_transcoder, and no coder here that rebuilds what it reads"
    ):
        change(folder, architecture="skip_transcoder")
        import_coder(folder, str(model), 2, tmp_path / "other", "stream")
    with pytest.raises(ValueError, match="architecture is gated, and no coder here that stands for an MLP is like it"):
        change(folder, architecture="gated")
        import_coder(folder, str(model), 2, tmp_path / "other")


SPARSIFY_MISTAKES = [
    ({"activation": "groupmax"}, "activation is 'groupmax', and only 'topk' can be taken over; no other has a like"),
    ({"signed": True}, "signed is True, and only False can be taken over; features here are never below 0"),
    ({"dropout": 0.1}, "the key dropout of its cfg.json is not known .*; load it with sparsify"),
    ({"k": 0}, "k is 0; expected a whole number from 1 to 40"),
    ({"d_in": None}, "d_in is None; expected a whole number above 0"),
    ({"num_latents": 39}, r"encoder.weight has the shape \(40, 16\), and cfg.json means \(39, 16\)"),
    ({"skip_connection": True}, "there is no tensor W_skip; expected encoder.weight"),
    ({"transcode": 1}, "transcode is 1; expected true or false"),
]


@pytest.mark.parametrize(("settings", "message"), SPARSIFY_MISTAKES)
def test_what_sparsify_may_say_and_we_do_not_take(settings: dict, message: str, model: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, "transcoder", "sparsify", model)
    change(folder, **settings)
    with pytest.raises(ValueError, match=message):
        import_coder(folder, str(model), None, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_transcoder_stands_for_an_mlp(model: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, "skip-transcoder", "sparsify", model)
    for changed in ({}, {"transcode": False}):
        change(folder, **changed)
        with pytest.raises(ValueError, match=r"it is a transcoder, .* the site given is mlp-out; give mlp, or none"):
            import_coder(folder, str(model), None, tmp_path / "back", "mlp-out")
    with pytest.raises(ValueError, match="'blk', which does not say which layer it belongs to; give --layer"):
        import_coder(folder.rename(tmp_path / "blk"), str(model), None, tmp_path / "back")
    coder = load_coder(import_coder(tmp_path / "blk", str(model), 0, tmp_path / "back", "mlp"))[1].coder
    assert (coder.layer, coder.site) == (0, "mlp")


def test_tensors_that_are_not_taken(model: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, "transcoder", "sparsify", model)
    bias = load_file(folder / "sae.safetensors")["encoder.bias"]

    def said(message: str, **changes: object) -> None:
        change(folder, **changes)
        with pytest.raises(ValueError, match=message):
            import_coder(folder, str(model), None, tmp_path / "back")

    for number in (math.nan, math.inf):
        wrong = torch.cat([bias[1:], torch.tensor([number])])
        said("the numbers of encoder.bias are not all finite", tensors={"encoder.bias": wrong})
    said("encoder.bias holds int32; expected floating-point numbers", tensors={"encoder.bias": bias.int()})
    said("the tensor extra is not known here", tensors={"encoder.bias": bias, "extra": bias + 1})
    said("there is no tensor b_dec; expected", without=("b_dec", "extra"))
    (folder / "sae.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"sae.safetensors could not be read: .*; copy it again"):
        import_coder(folder, str(model), None, tmp_path / "back")
    (folder / "sae.safetensors").unlink()
    torch.save({"W_dec": bias}, folder / "sae.pt")
    with pytest.raises(ValueError, match=r"has neither sae_weights.safetensors nor sae.safetensors; .*are not read"):
        import_coder(folder, str(model), None, tmp_path / "back")
    with pytest.raises(ValueError, match=r"give one of the folders in it, such as \S+out/h.1.mlp"):
        import_coder(tmp_path / "out", str(model), None, tmp_path / "back")
    with pytest.raises(ValueError, match=r"there is no folder \S+nowhere; give one that SAELens or sparsify saved"):
        import_coder(tmp_path / "nowhere", str(model), None, tmp_path / "back")


@pytest.mark.parametrize(
    ("text", "message"), [(None, "could not be read"), ("{", "could not be read"), ("[1]", "holds list; expected keys")]
)
def test_settings_that_are_none(text: str | None, message: str, model: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, "topk", "saelens", model)
    if text is None:
        (folder / "cfg.json").unlink()
    else:
        (folder / "cfg.json").write_text(text)
    with pytest.raises(ValueError, match=rf"cfg.json {message}"):
        import_coder(folder, str(model), None, tmp_path / "back")


def test_what_does_not_fit_the_model(model: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, "topk", "saelens", model)
    with pytest.raises(ValueError, match="layer 3 is not in this model: it has layers 0 to 2"):
        import_coder(folder, str(model), 3, tmp_path / "back")
    with pytest.raises(ValueError, match=r"no module 'transformer.h.1.mpl'; did you mean transformer.h.1.mlp"):
        import_coder(folder, str(model), 1, tmp_path / "back", "mlp-out", "transformer.h.{}.mpl")
    narrow = {"W_enc": torch.ones(8, FEATURES), "W_dec": torch.ones(FEATURES, 8), "b_dec": torch.ones(8)}
    change(folder, d_in=8, tensors=narrow)
    with pytest.raises(
        ValueError, match=rf"reads 8 numbers a token and {model} has 16; give the model that it was made"
    ):
        import_coder(folder, str(model), None, tmp_path / "back")
    assert not (tmp_path / "back").exists()


REFUSED = [
    ("mxd", "saelens", "of kind mxd; neither saelens nor sparsify has mixtures of decoders"),
    ("mxd", "sparsify", "of kind mxd; neither saelens nor sparsify has mixtures of decoders"),
    ("moe-x", "saelens", "of kind moe-x; neither saelens nor sparsify has mixtures of experts"),
    ("skip-transcoder", "saelens", "skip transcoders of saelens have no k; give --format sparsify"),
    *(
        (kind, "sparsify", f"sparsify has no {kind}, .*; give --format saelens")
        for kind in SAELENS
        if kind not in SPARSIFY
    ),
]


@pytest.mark.parametrize(("kind", "format", "message"), REFUSED)
def test_what_has_no_name_there(kind: str, format: str, message: str, tmp_path: Path) -> None:
    made_coder(tmp_path / "sweep/1/other", kind)
    with pytest.raises(ValueError, match=message):
        export_coders(tmp_path / "sweep", tmp_path / "out", format)
    with pytest.raises(ValueError, match=message):
        export_coder(tmp_path / "sweep/1/other", tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "format", "message"), REFUSED)
def test_what_fits_goes_out_and_the_rest_is_listed(
    kind: str, format: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, each in (("0/a-other", kind), ("1/topk-k5", "topk"), ("2/z-other", kind)):
        made_coder(tmp_path / "sweep" / folder, each, "nowhere-at-all")
    words = ["hub", "export", str(tmp_path / "sweep"), str(tmp_path / "out"), "--format", format]
    assert main(words) == 0
    folder, *rest = capsys.readouterr().out.splitlines()
    assert (Path(folder) / "cfg.json").is_file() and len(list((tmp_path / "out").rglob("cfg.json"))) == 1
    reason = message.removeprefix(f"of kind {kind}; ")
    for line, left_out in zip(rest, ("0/a-other", "2/z-other"), strict=True):
        assert re.match(f"left out: {tmp_path / 'sweep' / left_out}: .*{reason}", line)
    assert main([*words[:3], str(tmp_path / "again"), *words[4:], "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["left_out"]) == [
        str(tmp_path / "sweep/0/a-other"),
        str(tmp_path / "sweep/2/z-other"),
    ]


def test_nothing_is_written_over(model: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, "topk", "saelens", model)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for out in (folder, tmp_path / "file"):
        for act in (
            lambda out=out: export_coder(tmp_path / "coder", out, "saelens"),
            lambda out=out: export_coders(tmp_path / "coder", out, "sparsify"),
            lambda out=out: import_coder(folder, str(model), None, out),
        ):
            with pytest.raises(ValueError, match="is there already and not empty; give another --out"):
                act()
    assert import_coder(folder, str(model), None, tmp_path / "empty") == tmp_path / "empty"
    with pytest.raises(ValueError, match="there is no format 'onnx'; known: saelens, sparsify"):
        export_coder(tmp_path / "coder", tmp_path / "x", "onnx")


def test_a_killed_import_or_export_begins_again(model: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, "topk", "saelens", model)
    work = {
        "in": lambda out: import_coder(folder, str(model), None, out),
        "saelens": lambda out: export_coder(tmp_path / "coder", out, "saelens"),
        "sparsify": lambda out: export_coders(tmp_path / "coder", out, "sparsify"),
    }
    for name, act in work.items():
        out = tmp_path / f"killed-{name}"
        act(tmp_path / name)
        whole = {path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")}
        total, killed = accesses(lambda act=act: act(tmp_path / "count"), tmp_path / "count"), 0
        shutil.rmtree(tmp_path / "count")
        for at in range(1, total + 1):
            killed += killed_at(lambda act=act, out=out: act(out), out, at) == "killed"
            try:
                act(out)
            except ValueError as error:  # the kill came after the last file
                assert "is there already and not empty" in str(error)
            assert {path.relative_to(out) for path in out.rglob("*")} - {Path(LOCK)} == whole
            shutil.rmtree(out)
        assert killed > 3
    # The files of others stay.
    (tmp_path / "mine").mkdir()
    for file in ("import.json", "notes.txt"):
        (tmp_path / "mine" / file).write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        import_coder(folder, str(model), None, tmp_path / "mine")
    assert len(list((tmp_path / "mine").iterdir())) == 2


def test_a_place_by_path_and_a_model_that_is_not_at_hand(tmp_path: Path) -> None:
    coder = made_coder(tmp_path / "coder", "transcoder", "nowhere-at-all")
    (folder,), _ = export_coders(tmp_path / "coder", tmp_path / "out", "sparsify")
    assert folder == tmp_path / "out/layers.1.mlp"
    assert_alike(sparsify_by_hand(folder, tokens_read()), seen(coder, tokens_read()))
    made_coder(tmp_path / "other", "topk", "nowhere-at-all", site="stream")
    text = (tmp_path / "other/config.yaml").read_text()
    (tmp_path / "other/config.yaml").write_text(text.replace("module: null", "module: model.decoder.layers.{}.fc2"))
    (folder,), _ = export_coders(tmp_path / "other", tmp_path / "out2", "sparsify")
    assert folder == tmp_path / "out2/decoder.layers.1"


def test_an_imported_coder_is_measured_like_the_one_that_went_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the verbs: a sweep of two layers goes out, one coder comes back, and its figures are the same."""
    prepared(tmp_path / "text", made_up_texts(200), tokenizer="train:300", valid_share=0.3)
    gpt2 = random_gpt2(tmp_path / "gpt2", tmp_path / "text")
    for layer in (0, 2):
        given = {"layer": layer, "data": tmp_path / "text", "rows": "packed:41"}
        made_coder(tmp_path / f"sweep/{layer}/transcoder-k5", "transcoder", gpt2, **given)
    for format, folders in {
        "saelens": ["0/transcoder-k5", "2/transcoder-k5"],
        "sparsify": ["transcoder-k5/h.0.mlp", "transcoder-k5/h.2.mlp"],
    }.items():
        words = f"hub export {tmp_path / 'sweep'} --format {format} --out {tmp_path / format}"
        assert main(words.split()) == 0
        assert capsys.readouterr().out.split() == [str(tmp_path / format / each) for each in folders]
        assert main(words.split()) == 2
        assert "is there already and not empty" in capsys.readouterr().err
    words = f"hub import {tmp_path / 'saelens/2/transcoder-k5'} --model {gpt2} --out {tmp_path / 'back'}"
    assert main(words.split()) == 0
    assert f"next: glassmoe eval fidelity {tmp_path / 'back'}" in capsys.readouterr().out
    receipt = json.loads((tmp_path / "back/import.json").read_text())
    assert receipt["format"] == "saelens" and receipt["cfg"]["architecture"] == "topk"
    expected = evaluate_fidelity(*open_coders(tmp_path / "sweep"), max_rows=4)["2/transcoder-k5"]
    found = evaluate_fidelity(*open_coders(tmp_path / "back"), max_rows=4, data=str(tmp_path / "text"))["back"]
    same = ("loss", "loss_spliced", "loss_zero", "normalised_mse", "l0", "alive")
    assert [getattr(found, key) for key in same] == pytest.approx([getattr(expected, key) for key in same], rel=1e-5)
    assert (found.kind, found.k, found.step) == ("transcoder", K, 0)
    assert main(f"eval fidelity {tmp_path / 'back'} --rows 4 --data.path {tmp_path / 'text'}".split()) == 0
    assert "recovered" in capsys.readouterr().out
    words = f"hub import {tmp_path / 'sparsify/transcoder-k5/h.0.mlp'} --model {gpt2} --out {tmp_path / 'two'} --json"
    assert main([*words.split(), "--layer", "1", "--site", "mlp", "--module", "transformer.h.{}.mlp"]) == 0
    assert json.loads(capsys.readouterr().out) == {"coder": str(tmp_path / "two")}
    assert load_coder(tmp_path / "two")[1].module == "transformer.h.{}.mlp"


def test_errors_of_hub_name_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in {
        "hub": "hub needs one of export, import",
        "hub --json": "got none",
        "hub push": "got 'push'",
        "hub export": "hub export: required: source, out",
        f"hub export {tmp_path} --format onnx --out x": "got 'onnx'",
        f"hub export {tmp_path} --format saelens --out {tmp_path / 'x'}": "there are no coders in",
        f"hub import {tmp_path} --out x": "required: model",
    }.items():
        assert main(words.split()) == 2
        assert said in capsys.readouterr().err, words


def test_a_run_of_our_own_gives_its_data(noise_games: Path, tmp_path: Path) -> None:
    run = train(tiny(noise_games, "relu"), tmp_path / "run")
    made_coder(tmp_path / "coder", "gated", run)
    (folder,), _ = export_coders(tmp_path / "coder", tmp_path / "out", "saelens")
    back = import_coder(folder, str(run), None, tmp_path / "back")
    config = load_coder(back)[1]
    assert config.data == load_subject(str(run)).config.data and isinstance(config, FitConfig)
    assert evaluate_fidelity(*open_coders(back), max_rows=4)["back"].l0 > 0
    made_coder(tmp_path / "other", "topk", run, site="mlp-out")
    assert export_coders(tmp_path / "other", tmp_path / "y", "sparsify")[0][0].name == "layers.1.ffn"
    assert config.coder == CoderConfig(layer=1, kind="gated", site="stream", features=FEATURES, dead_tokens=1)
