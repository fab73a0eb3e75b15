"""Our decoder in software that spreads or serves models: device maps, pipeline and tensor parallelism, and attention
functions that are handed in, as vLLM hands its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from forked import free_port
from glassmoe.model import GlassConfig, GlassForCausalLM
from glassmoe.model.transformer import Block, GlassModel

SHAPES: dict[str, dict[str, Any]] = {
    "learned": {},
    "llama": {"positions": "rotary", "norm": "rmsnorm", "kv_heads": 2, "gated": True, "tie_word_embeddings": False},
    "neox": {"positions": "rotary", "rotary_share": 0.5, "parallel_residual": True, "bias": True},
}
TEXTS = ([3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9])


def model_of(shape: str) -> GlassForCausalLM:
    torch.manual_seed(0)
    sizes = {"width": 32, "layers": 4, "heads": 4, "active_width": 32, "num_experts": 4, "context": 12}
    return GlassForCausalLM(GlassConfig(init_std=0.2, **{**sizes, **SHAPES[shape]})).eval()


@torch.no_grad()
def alone(model: GlassForCausalLM) -> list[Tensor]:
    """The last hidden states (S, D) of each text by itself."""
    return [model.model(torch.tensor([text]))[0][0] for text in TEXTS]


class Served(nn.Module):
    """The attention of one layer as a server of models has it: it gets tokens of all texts in one row, and knows where
    each begins. It is chosen by the number of the layer."""

    def __init__(self, lengths: list[int]):
        super().__init__()
        self.lengths = lengths
        self.calls = 0

    def forward(self, q_SHD: Tensor, k_SGD: Tensor, v_SGD: Tensor) -> Tensor:
        self.calls += 1
        out = []
        for q, k, v in zip(*(x.split(self.lengths) for x in (q_SHD, k_SGD, v_SGD)), strict=True):
            heads = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
            out.append(F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)[0].transpose(0, 1))
        return torch.cat(out).flatten(1)


def serving_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    layer = kwargs["attention_instances"][module.layer_idx]
    assert attention_mask is None and query.shape[0] == 1
    return layer(*(x[0].transpose(0, 1) for x in (query, key, value))), None


@pytest.fixture
def serving() -> Any:
    ALL_ATTENTION_FUNCTIONS.register("served", serving_attention)
    yield "served"
    ALL_ATTENTION_FUNCTIONS._local_mapping.pop("served", None)


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_an_attention_that_is_handed_in_serves_several_texts_in_one_row(shape: str, serving: str) -> None:
    model = model_of(shape)
    expected = torch.cat(alone(model))
    base = AutoModel.from_config(model.config)
    assert type(base) is GlassModel and base._supports_attention_backend
    base.load_state_dict(model.model.state_dict())
    base.eval()
    base.config._attn_implementation = serving
    layers = {number: Served([len(text) for text in TEXTS]) for number in range(4)}
    ids, positions = (
        torch.tensor([[each for row in rows for each in row]])
        for rows in (TEXTS, [list(range(len(text))) for text in TEXTS])
    )
    assert ids.shape[1] > model.config.context
    hidden = base(input_ids=ids, position_ids=positions, use_cache=False, attention_instances=layers, return_dict=False)
    torch.testing.assert_close(hidden[0][0], expected, rtol=1e-4, atol=1e-5)
    assert [layer.calls for layer in layers.values()] == [1, 1, 1, 1]


class Elsewhere(nn.Identity):
    """A module that runs on another stage of a pipeline."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args else next(iter(kwargs.values()))


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_stages_of_a_pipeline_compute_the_model(shape: str) -> None:
    whole = model_of(shape)
    plan = whole.config.base_model_pp_plan
    ids = torch.tensor([TEXTS[0], TEXTS[0][::-1]])
    positions = torch.arange(5).expand(2, -1)
    hidden = None
    for stage in range(2):
        base = model_of(shape).model
        names = [name for name in plan if getattr(base, name) is not None]
        assert {name for name, _ in base.named_children()} == set(names)
        place = names.index("layers")
        for name in names[place + 1 :] if stage == 0 else names[:place]:
            setattr(base, name, Elsewhere())
        for number in (2, 3) if stage == 0 else (0, 1):
            base.layers[number] = Elsewhere()
        inputs = {"input_ids": ids} if stage == 0 else {"inputs_embeds": hidden}
        hidden = base(**inputs, position_ids=positions, use_cache=False)[0]
    torch.testing.assert_close(hidden, whole.model(ids)[0])


def test_configuration_has_what_servers_need() -> None:
    for shape, kv_heads in (("learned", 4), ("llama", 2)):
        config = model_of(shape).config
        assert (config.num_attention_heads, config.num_key_value_heads) == (4, kv_heads)
        assert (config.hidden_size, config.num_hidden_layers, config.max_position_embeddings) == (32, 4, 12)
    names = {name for name, _ in model_of("llama").model.named_modules()}
    for name in GlassConfig.base_model_tp_plan:
        assert name.replace("*", "0") in names
    assert GlassForCausalLM._no_split_modules == [Block.__name__]


@pytest.mark.parametrize("shape", SHAPES)
def test_generation_under_a_device_map(shape: str, tmp_path: Path) -> None:
    """Blocks are never split: half of them lies on disk, the rest in memory."""
    pytest.importorskip("accelerate")
    model = model_of(shape)
    model.save_pretrained(tmp_path / "model")
    ids = torch.tensor([TEXTS[0]])
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, **settings)
    places: dict[str, Any] = {f"model.layers.{number}": "cpu" if number < 2 else "disk" for number in range(4)}
    places |= {f"model.{name}": "cpu" for name, _ in model.model.named_children() if name != "layers"}
    places["lm_head"] = "cpu"
    mapped = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "off"
    )
    assert mapped.hf_device_map["model.layers.3"] == "disk"
    assert next(mapped.model.layers[3].parameters()).device.type == "meta"
    assert mapped.generate(ids, **settings).equal(expected)


RANK = """
import sys
import torch
from transformers import AutoModelForCausalLM
import glassmoe.model
path = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(path, tp_plan="auto").eval()
weight = model.model.layers[0].attention.qkv.weight
part = weight.to_local() if hasattr(weight, "to_local") else weight
with torch.no_grad():
    logits = model(input_ids=torch.tensor([[3, 1, 4, 1, 5]]), use_cache=False).logits
if torch.distributed.get_rank() == 0:
    torch.save({"logits": logits, "part": part.shape[0]}, path + "/found.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_two_processes_divide_the_attention_of_a_model(shape: str, tmp_path: Path) -> None:
    model = model_of(shape)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "rank.py").write_text(RANK)
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--master_port",
        str(free_port()),
        "--nproc_per_node",
        "2",
    ]
    done = subprocess.run(
        [*launcher, str(tmp_path / "rank.py"), str(tmp_path / "model")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "model" / "found.pt", weights_only=True)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[3, 1, 4, 1, 5]]), use_cache=False).logits
    torch.testing.assert_close(found["logits"], expected, rtol=1e-4, atol=1e-5)
    assert found["part"] == model.model.layers[0].attention.qkv.weight.shape[0] // 2
