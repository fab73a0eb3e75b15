"""A step of training on a simulated GPU: no tensors of two devices meet, nothing waits for the device, and the numbers
are those of a CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from glassmoe.coders.configuration import AUTOENCODERS
from glassmoe.data.corpus import Corpus
from glassmoe.model import FEED_FORWARD
from glassmoe.text.tokens import load_tokenizer, text_kind
from glassmoe.training.run import tokenizer_of
from simulated_device import results_of
from text_files import made_up_texts, prepared

SCRIPT = Path(__file__).parents[1] / "simulated_steps.py"
PASSES = 2


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with text in its folder `text`."""
    folder = tmp_path_factory.mktemp("llama")
    prepared(folder / "first", made_up_texts(50))
    tokenizer_of(Corpus.open(folder / "first").kind, 40).save_pretrained(folder)
    kind = text_kind(*load_tokenizer(folder))
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    ids = {"vocab_size": kind.size, "bos_token_id": kind.start, "eos_token_id": kind.start}
    torch.manual_seed(1)
    config = transformers.LlamaConfig(**sizes, **ids, max_position_embeddings=40)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    prepared(folder / "text", made_up_texts(60), str(folder), valid_share=0.2)
    return folder


@pytest.fixture(scope="module")
def found(noise_games: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("simulated") / "out"
    return results_of(SCRIPT, str(noise_games), str(source), str(out))


def same(ours: Any, theirs: Any) -> None:
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for name in ours:
            same(ours[name], theirs[name])
    elif isinstance(ours, list):
        for a, b in zip(ours, theirs, strict=True):
            same(a, b)
    else:
        assert ours == pytest.approx(theirs, rel=2e-5, abs=2e-5)


def same_numbers(case: dict[str, Any]) -> None:
    assert "error" not in case, case["error"]
    same(case["device"]["lines"], case["cpu"]["lines"])
    for name in ("statistics", "validation"):
        same(case["device"][name]["values"], case["cpu"][name]["values"])


@pytest.mark.parametrize("name", [*(f"{f}-{o}" for f in FEED_FORWARD for o in ("adamw", "muon")), "recompute"])
def test_a_step_waits_for_nothing(name: str, found: dict[str, Any]) -> None:
    same_numbers(found[name])
    for step in found[name]["device"]["steps"]:
        assert step["waits"] == {}
        # Tokens and lengths of each pass to the device, and all values to log from it.
        assert step["transfers"] == {"_to_copy": 2 * PASSES, "copy_": 1}
    # Figures are copied once, however many layers and passes there are.
    for measure in ("statistics", "validation"):
        assert sum(found[name]["device"][measure]["waits"].values()) == 1


@pytest.mark.parametrize("objective", ["next-token", "distill"])
def test_a_step_in_place_waits_only_inside_transformers(objective: str, found: dict[str, Any]) -> None:
    """Once for each pass of a model, where transformers looks for several documents in a row."""
    case = found[f"in place: {objective}"]
    same_numbers(case)
    models = 2 if objective == "distill" else 1
    for step in case["device"]["steps"]:
        assert {name.partition(":")[0]: n for name, n in step["waits"].items()} == {
            "_local_scalar_dense (masking_utils.py": PASSES * models
        }


@pytest.mark.parametrize("kind", [*AUTOENCODERS, "transcoder", "mxd", "moe-x", "switch"])
def test_a_step_of_a_coder_waits_only_for_what_it_reads(kind: str, found: dict[str, Any]) -> None:
    """Once for each pass: whether the activations are finite. `batchtopk` also lists as many features as fire."""
    case = found[f"coder: {kind}"]
    same_numbers(case)
    for step in case["device"]["steps"]:
        waits = {name for name in step["waits"] if "(subject.py" not in name}
        assert sum(step["waits"].values()) <= PASSES * (6 if kind == "batchtopk" else 1)
        assert not waits or kind == "batchtopk"


def test_the_device_refuses_and_counts(tmp_path: Path) -> None:
    """What the other tests rely on."""
    script = tmp_path / "refused.py"
    script.write_text(
        "import torch\n"
        "from simulated_device import SimulatedDevice, on_device\n"
        "def mixed(device):\n"
        "    return (torch.ones(3, device=device) + torch.ones(3)).tolist()\n"
        "def waits(device):\n"
        "    x = torch.arange(3.0, device=device)\n"
        "    with SimulatedDevice.current.counting() as counts:\n"
        "        float(x.sum()), x[x > 1], x.nonzero(), x.cpu(), torch.tensor([1, 2], device=device)\n"
        "        x + torch.ones(()), x * 2, x.softmax(0), torch.ones(3).pin_memory().to(device, non_blocking=True)\n"
        "        return dict(counts.waits), dict(counts.transfers)\n"
        "def learns(device):\n"
        "    w = torch.nn.Parameter(torch.ones(2, 2, device=device))\n"
        "    (w @ w).sum().backward()\n"
        "    return str(w.grad.device), w.grad.tolist()\n"
        "on_device({each.__name__: each for each in (mixed, waits, learns)})\n"
    )
    found = results_of(script)
    assert "MixedDevices: add got a tensor (3,) of the host" in found["mixed"]["error"]
    waits, transfers = found["waits"]
    assert sum(waits.values()) == 5 and transfers == {"_to_copy": 3}
    assert found["learns"] == ["simulated:0", [[4.0, 4.0], [4.0, 4.0]]]
