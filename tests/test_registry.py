"""Open registries: names as data, dictionaries first, then installed packages."""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from glassmoe import registry
from glassmoe.coders.base import Coder
from glassmoe.coders.configuration import AUTOENCODERS, KINDS, CoderConfig
from glassmoe.coders.kinds import CODERS, build_coder, coder_class, coder_settings
from glassmoe.coders.sae import L1
from glassmoe.config import ModelConfig
from glassmoe.layers.moe import MoE
from glassmoe.layers.routers import ROUTERS, sparsity_scores
from glassmoe.model import FEED_FORWARD, GlassConfig, GlassForCausalLM
from glassmoe.registry import CODER_REGISTRY, LAYER_REGISTRY, ROUTER_REGISTRY, Registry


@pytest.mark.parametrize(
    ("names", "table"), [(LAYER_REGISTRY, FEED_FORWARD), (ROUTER_REGISTRY, ROUTERS), (CODER_REGISTRY, CODERS)]
)
def test_names_without_torch_are_those_of_the_dictionary(names: Registry, table: dict) -> None:
    assert names.built_in == tuple(table)
    assert getattr(sys.modules[names.module], names.table) is table
    for name in table:
        assert names.look_up(table, name) is table[name]


def test_a_dictionary_comes_before_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint(name, "json:loads", "glassmoe.feed_forward") for name in ("gelu", "installed")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "glassmoe.feed_forward" else [])
    import json

    assert LAYER_REGISTRY.look_up(FEED_FORWARD, "gelu") is FEED_FORWARD["gelu"]
    assert LAYER_REGISTRY.look_up(FEED_FORWARD, "installed") is json.loads
    assert LAYER_REGISTRY.names()[-1] == "installed" and LAYER_REGISTRY.names().count("gelu") == 1
    assert ModelConfig(ffn="installed").ffn == "installed"


def test_packages_that_are_installed_later_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(name: str) -> None:
        folder = tmp_path / f"{name}-1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (folder / "entry_points.txt").write_text(f"[glassmoe.routers]\n{name} = json:loads\n")

    built_in = ROUTER_REGISTRY.names()
    install("first")
    assert ROUTER_REGISTRY.names() == built_in
    monkeypatch.syspath_prepend(tmp_path)
    assert ROUTER_REGISTRY.names() == [*built_in, "first"]
    install("second")
    os.utime(tmp_path, (1e9, 1e9))  # the clock of a file system may be coarse
    assert sorted(ROUTER_REGISTRY.installed()) == ["first", "second"] and ROUTER_REGISTRY.provider("second") == "second"
    monkeypatch.undo()
    assert ROUTER_REGISTRY.names() == built_in


def test_an_unknown_name_is_an_error_with_the_nearest_before_torch_is_imported() -> None:
    code = (
        "import sys; from glassmoe.config import ModelConfig\n"
        "from glassmoe.coders.configuration import CoderConfig\n"
        "for make in (lambda: ModelConfig(ffn='moex'), lambda: ModelConfig(router='learnt'),\n"
        "             lambda: CoderConfig(0, 'batch-topk')):\n"
        "    try: make()\n"
        "    except ValueError as error: print(error)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert "model.ffn: unknown feed-forward layer 'moex'; did you mean moe-x? Known: gelu" in lines[0]
    assert "model.router: unknown router 'learnt'; did you mean learned? Known: learned, sparsity." in lines[1]
    assert "coder.kind: unknown coder 'batch-topk'; did you mean batchtopk?" in lines[2]
    assert "glassmoe.CODERS['batch-topk'] = ..." in lines[2]


def test_a_router_that_is_a_function_scores_like_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setitem(ROUTERS, "mine", lambda x_TD, layer: sparsity_scores(x_TD, *layer.encoder_statistics()))
    torch.manual_seed(0)
    own = MoE(16, 8, 4, 2)
    for p in own.parameters():
        torch.nn.init.normal_(p)
    mine = MoE(16, 8, 4, 2, router="mine")
    mine.load_state_dict(own.state_dict())
    x = torch.randn(3, 5, 16)
    assert torch.equal(own(x)[0], mine(x)[0]) and torch.equal(own.scores(x), mine.scores(x))
    assert mine.active_parameters() == own.active_parameters() - 2 * 4 * 16
    with torch.no_grad():
        torch.testing.assert_close(own.eval()(x[0, 0])[0], mine.eval()(x[0, 0])[0])


def test_a_router_with_weights_starts_like_other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class Mine(torch.nn.Module):
        def __init__(self, width: int, num_experts: int):
            super().__init__()
            self.map = torch.nn.Linear(width, num_experts)

        def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
            return self.map(x_TD).float()

    monkeypatch.setitem(ROUTERS, "mine", Mine)
    sizes = {"width": 16, "layers": 1, "heads": 2, "active_width": 32, "num_experts": 4}
    model = GlassForCausalLM(GlassConfig(**{**sizes, "router": ModelConfig(router="mine").router}))
    (layer,) = model.feed_forwards()
    assert 0.01 < layer.router.map.weight.std() < 0.03 and not layer.router.map.bias.any()
    assert model(torch.zeros(1, 3, dtype=torch.long)).logits.shape == (1, 3, 32)


def test_kinds_agree_with_the_configuration() -> None:
    assert [kind for kind in KINDS if kind in AUTOENCODERS] == list(AUTOENCODERS)
    for kind in KINDS:
        config = CoderConfig(layer=0, kind=kind)
        assert (config.stands_for_mlp, config.uses_k) == (coder_class(kind).stands_for_mlp, coder_class(kind).uses_k)
        assert coder_settings(config.label) == {"kind": kind}
    assert coder_settings("mxd-one") == {"kind": "mxd", "variant": "one", "gate": "one"}
    with pytest.raises(ValueError, match="unknown coder 'mxd-on'; did you mean mxd-one"):
        coder_settings("mxd-on")


def test_a_coder_and_its_settings_join_by_the_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(L1):
        uses_k = True

    monkeypatch.setitem(CODERS, "mine", Mine)
    monkeypatch.setitem(CODERS, "mine-wide", (Mine, {"features": 99}))
    assert coder_settings("mine-wide") == {"kind": "mine", "variant": "wide", "features": 99}
    config = CoderConfig(layer=2, **coder_settings("mine-wide"), options={"p": 2})
    assert config.name == "2/mine-wide-k32" and config.complete(16, 100).site == "stream"
    coder = build_coder(config, 16, 10, 100)
    assert isinstance(coder, Coder) and coder.num_features == 99 and coder.config.options == {"p": 2}
