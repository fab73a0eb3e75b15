"""The layouts against the packages themselves: what we write is loaded by SAELens and sparsify and computes there what
it does here, in a model too; what they write comes in and computes what it does there. `make test-peers` runs it, in
an environment of its own."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from glassmoe.coders.base import Coder
from glassmoe.coders.files import load_coder
from glassmoe.coders.formats import export_coders, import_coder
from glassmoe.inspect.edit import spliced
from glassmoe.model.subject import load_subject, place_in
from made_coders import FEATURES, WIDTH, K, assert_alike, bare_gpt2, made_coder, seen, tokens_read

pytestmark = [pytest.mark.peers, pytest.mark.slow]


@pytest.fixture(scope="module")
def sae_lens() -> ModuleType:
    return pytest.importorskip("sae_lens")


@pytest.fixture(scope="module")
def sparsify() -> ModuleType:
    return pytest.importorskip("sparsify")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare_gpt2(tmp_path_factory.mktemp("model") / "gpt2")


@torch.no_grad()
def by_saelens(sae: Any, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and output. `forward` has the skip, which `decode` has not."""
    features, output = sae.encode(x_TD), sae(x_TD)
    if "skip" not in sae.cfg.architecture():
        torch.testing.assert_close(output, sae.decode(features))
    return features, output


@torch.no_grad()
def by_sparsify(coder: Any, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """With multi_topk `forward` returns what the loss of training sees, 4 k features; coders are read with k."""
    values, ids, _ = coder.encode(x_TD)
    dense = torch.zeros(len(x_TD), coder.num_latents).scatter(1, ids, values)
    output = coder.decode(values, ids) if coder.cfg.multi_topk else coder(x_TD).sae_out
    return dense, output


SAELENS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in ("topk", "batchtopk", "jumprelu", "l1", "p-anneal", "gated", "transcoder")),
    ("topk", {"site": "mlp-out"}),
    ("transcoder", {"k": FEATURES}),
    ("skip-transcoder", {"k": FEATURES}),
]


@pytest.mark.parametrize("normalise", ["none", "rms"])
@pytest.mark.parametrize(("kind", "settings"), SAELENS)
def test_saelens_loads_what_we_write(
    kind: str, settings: dict[str, Any], normalise: str, sae_lens: ModuleType, model: Path, tmp_path: Path
) -> None:
    """And spliced into its model by the hooks that the folder names, it leaves the logits that it leaves here. (The
    skip of a transcoder is in its `forward`, which SAELens does not call when it splices.)"""
    coder = made_coder(tmp_path / "coder", kind, model, normalise, **settings)
    (folder,), _ = export_coders(tmp_path / "coder", tmp_path / "out", "saelens")
    sae = sae_lens.SAE.load_from_disk(folder)
    assert_alike(by_saelens(sae, tokens_read()), seen(coder, tokens_read()))
    if kind == "skip-transcoder":
        return
    subject, tokens = load_subject(str(model), "cpu"), torch.arange(20).view(2, 10)
    bridge = sae_lens.SAETransformerBridge.boot_transformers(str(model), hf_model=subject.model, device="cpu")
    with torch.no_grad():
        plain = bridge(tokens)
        theirs = bridge.run_with_saes(tokens, saes=[sae])
        untouched = load_subject(str(model), "cpu").model
        with spliced(untouched, coder, place_in(untouched, 1, coder.config.site)):
            ours = untouched(input_ids=tokens).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, ours, atol=1e-2)


@pytest.mark.parametrize("normalise", ["none", "rms"])
@pytest.mark.parametrize("kind", ["topk", "transcoder", "skip-transcoder"])
def test_sparsify_loads_what_we_write(
    kind: str, normalise: str, sparsify: ModuleType, model: Path, tmp_path: Path
) -> None:
    coder = made_coder(tmp_path / "coder", kind, model, normalise)
    (folder,), _ = export_coders(tmp_path / "coder", tmp_path / "out", "sparsify")
    (theirs,) = sparsify.SparseCoder.load_many(str(tmp_path / "out"), local=True).values()
    assert_alike(by_sparsify(theirs, tokens_read()), seen(coder, tokens_read()))
    # The name is that of a module below its base model, as its trainer and hooks look for it.
    assert dict(load_subject(str(model), "cpu").model.base_model.named_modules())[folder.name]


def came_in(folder: Path, model: Path, out: Path, kind: str, site: str) -> Coder:
    coder, config = load_coder(import_coder(folder, str(model), None, out))
    assert (config.coder.kind, config.coder.site, config.coder.layer) == (kind, site, 1)
    return coder


HOOKS = {"stream": "blocks.1.hook_resid_post", "mlp-out": "blocks.1.hook_mlp_out", "mlp": "blocks.1.mlp.hook_in"}
THEIRS: list[tuple[str, dict[str, Any], str, str]] = [
    # configuration, settings, our kind, site
    ("StandardSAEConfig", {}, "l1", "stream"),
    ("StandardSAEConfig", {"apply_b_dec_to_input": False}, "l1", "mlp-out"),
    ("TopKSAEConfig", {"k": K}, "topk", "stream"),
    ("TopKSAEConfig", {"k": K, "rescale_acts_by_decoder_norm": True}, "topk", "stream"),
    ("TopKSAEConfig", {"k": K, "rescale_acts_by_decoder_norm": True, "apply_b_dec_to_input": False}, "topk", "stream"),
    ("JumpReLUSAEConfig", {}, "jumprelu", "stream"),
    ("JumpReLUSAEConfig", {"apply_b_dec_to_input": False}, "jumprelu", "mlp-out"),
    ("GatedSAEConfig", {}, "gated", "stream"),
    ("GatedSAEConfig", {"apply_b_dec_to_input": False}, "gated", "stream"),
    ("TranscoderConfig", {"d_out": WIDTH, "apply_b_dec_to_input": False}, "transcoder", "mlp"),
    ("SkipTranscoderConfig", {"d_out": WIDTH, "apply_b_dec_to_input": False}, "skip-transcoder", "mlp"),
]


def draw(module: torch.nn.Module) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p) * 0.4)


@pytest.mark.parametrize(("name", "settings", "kind", "site"), THEIRS)
def test_what_saelens_saves_comes_in(
    name: str, settings: dict[str, Any], kind: str, site: str, sae_lens: ModuleType, model: Path, tmp_path: Path
) -> None:
    config = getattr(sae_lens, name)(d_in=WIDTH, d_sae=FEATURES, **settings)
    config.metadata.hook_name = HOOKS[site]
    if site == "mlp":
        config.metadata.hook_name_out = HOOKS["mlp-out"]
    sae = sae_lens.registry.get_sae_class(config.architecture())[0](config)
    draw(sae)
    sae.save_model(tmp_path / "theirs")
    coder = came_in(tmp_path / "theirs", model, tmp_path / "back", kind, site)
    assert_alike(seen(coder, tokens_read()), by_saelens(sae, tokens_read()))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("TopKTrainingSAE", "topk"), ("BatchTopKTrainingSAE", "jumprelu"), ("StandardTrainingSAE", "l1")],
)
def test_what_saelens_saves_after_training_comes_in(
    name: str, kind: str, sae_lens: ModuleType, model: Path, tmp_path: Path
) -> None:
    """With save_inference_model; a checkpoint of the training itself is refused."""
    settings = {} if kind == "l1" else {"k": K}
    config = getattr(sae_lens, f"{name}Config")(d_in=WIDTH, d_sae=FEATURES, **settings)
    config.metadata.hook_name = HOOKS["stream"]
    sae = getattr(sae_lens, name)(config)
    draw(sae)
    if kind == "jumprelu":
        sae.topk_threshold.fill_(0.7)
    sae.save_inference_model(tmp_path / "theirs")
    coder = came_in(tmp_path / "theirs", model, tmp_path / "back", kind, "stream")
    loaded = sae_lens.SAE.load_from_disk(tmp_path / "theirs")
    assert_alike(seen(coder, tokens_read()), by_saelens(loaded, tokens_read()))
    sae.save_model(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="of a training checkpoint give what its save_inference_model wrote"):
        import_coder(tmp_path / "checkpoint", str(model), None, tmp_path / "other")


@pytest.mark.parametrize("name", ["JumpReLUTranscoderConfig", "MatchingPursuitSAEConfig", "AbsTopKSAEConfig"])
def test_what_saelens_has_and_we_have_not(name: str, sae_lens: ModuleType, model: Path, tmp_path: Path) -> None:
    settings = {"d_out": WIDTH, "apply_b_dec_to_input": False} if "Transcoder" in name else {}
    config = getattr(sae_lens, name)(d_in=WIDTH, d_sae=FEATURES, **settings)
    sae_lens.registry.get_sae_class(config.architecture())[0](config).save_model(tmp_path / "theirs")
    with pytest.raises(ValueError, match=f"architecture is '{config.architecture()}'; expected one of standard"):
        import_coder(tmp_path / "theirs", str(model), 1, tmp_path / "back")


@pytest.mark.parametrize(
    ("settings", "kind", "site"),
    [
        ({}, "topk", "mlp-out"),
        ({"normalize_decoder": False, "multi_topk": True}, "topk", "mlp-out"),
        ({"transcode": True}, "transcoder", "mlp"),
        ({"transcode": True, "skip_connection": True}, "skip-transcoder", "mlp"),
        ({"skip_connection": True}, "skip-transcoder", "mlp"),
    ],
)
@pytest.mark.parametrize("size", [{"num_latents": 48}, {"expansion_factor": 3}])
def test_what_sparsify_saves_comes_in(
    settings: dict[str, Any], kind: str, site: str, size: dict[str, int],
    sparsify: ModuleType, model: Path, tmp_path: Path,
) -> None:  # fmt: skip
    theirs = sparsify.SparseCoder(WIDTH, sparsify.SparseCoderConfig(k=K, **size, **settings))
    draw(theirs)
    theirs.save_to_disk(tmp_path / "h.1.mlp")
    coder = came_in(tmp_path / "h.1.mlp", model, tmp_path / "back", kind, site)
    assert_alike(seen(coder, tokens_read()), by_sparsify(theirs, tokens_read()))


def test_sparsifys_groups_are_refused(sparsify: ModuleType, model: Path, tmp_path: Path) -> None:
    config = sparsify.SparseCoderConfig(k=8, num_latents=FEATURES, activation="groupmax")
    sparsify.SparseCoder(WIDTH, config).save_to_disk(tmp_path / "h.1")
    with pytest.raises(ValueError, match="activation is 'groupmax', and only 'topk'"):
        import_coder(tmp_path / "h.1", str(model), None, tmp_path / "back")
