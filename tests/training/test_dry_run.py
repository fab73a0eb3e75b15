"""The memory that a dry run computes: by hand for a small model, and as a process measures it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

import glassmoe
from glassmoe.api.recipes import configure
from glassmoe.cli.main import main
from glassmoe.config import to_yaml
from glassmoe.model import FEED_FORWARD, chunked_loss
from glassmoe.training.memory import GIB, MemoryPlan

# 2 layers of width 32 with 64 hidden units, 2 heads, 7 rows of 16 input positions, characters (32 ids).
SMALL = {
    "ffn": "gelu",
    "layers": 2,
    "heads": 2,
    "width": 32,
    "active_width": 64,
    "data.rows": "games:17",
    "batch_rows": 14,
    "micro_rows": 7,
    "device": "cpu",
    "precision": "fp32",
}
TOKENS, WIDTH, UNITS, HEADS, IDS = 7 * 16, 32, 64, 2, 32
BLOCK = 4 * WIDTH * WIDTH + 2 * WIDTH * UNITS + 2 * WIDTH  # attention, feed-forward layer, norms
OUTSIDE = IDS * WIDTH + 17 * WIDTH + WIDTH  # embedding (tied), positions, norm


def plan(**settings: object) -> MemoryPlan:
    options = {name: settings.pop(name) for name in ("processes", "memory") if name in settings}
    return glassmoe.train(dry_run=True, **{**SMALL, "optimizer.name": "adamw", **settings, **options})  # type: ignore[arg-type]


def test_memory_of_one_process_by_hand() -> None:
    found = plan()
    parameters = 2 * BLOCK + OUTSIDE
    assert (found.parameters, found.vocabulary, found.pass_tokens) == (parameters, IDS, TOKENS)
    assert (found.weights, found.gradients, found.states) == (4 * parameters, 4 * parameters, 8 * parameters)
    assert found.gathered == 0 and not found.chunked_loss
    # Kept for each token: inputs of two norms, their mean and 1 / sd, their outputs; queries, keys and values; the
    # output of attention and the logarithm of its sum for each head; the hidden units before and after GELU.
    kept = 4 * TOKENS * (2 * WIDTH + 2 * 2 + 2 * WIDTH + 3 * WIDTH + WIDTH + HEADS + 2 * UNITS)
    assert found.kept.activations == 2 * kept
    assert found.recomputed.activations == 2 * 4 * TOKENS * WIDTH
    # Without a recomputed block, its whole forward pass comes before its backward pass.
    assert found.recomputed.backward == found.kept.backward + kept - 4 * TOKENS * WIDTH
    held = 16 * parameters
    assert found.total == held + found.kept.activations + max(found.kept.backward, found.kept.logits)


def test_muon_holds_one_state_of_a_matrix() -> None:
    found = plan(**{"optimizer.name": "muon"})
    matrices = 2 * (4 * WIDTH * WIDTH + 2 * WIDTH * UNITS)
    assert found.states == 4 * (matrices + 2 * (found.parameters - matrices))


def test_blocks_share_one_document_mask() -> None:
    packed = {"data.rows": "packed:17"}
    masked, plain = (plan(**packed, **{"data.document_mask": each}) for each in (True, False))
    assert masked.recomputed.activations - plain.recomputed.activations == 7 * 16 * 16
    assert plan(**{"data.document_mask": True}).total == plan().total  # rows of one document each


@pytest.mark.parametrize("processes", [2, 7])
def test_several_processes_share_weights(processes: int) -> None:
    found, alone = plan(processes=processes), plan()
    # Rows of a weight are divided; the first process has the larger part.
    share = [-(-rows // processes) for rows in (3 * WIDTH, WIDTH, UNITS, UNITS, WIDTH, WIDTH)]
    block = share[0] * WIDTH + share[1] * WIDTH + 2 * share[2] * WIDTH + 2 * share[4]
    outside = (-(-IDS // processes) + -(-17 // processes)) * WIDTH + share[4]
    assert found.weights == 4 * (2 * block + outside) and found.states == 2 * found.weights
    assert found.gathered == 4 * (OUTSIDE + 3 * BLOCK)
    assert found.pass_tokens == (7 if processes == 2 else 2) * 16 and found.parameters == alone.parameters


def test_a_copy_for_each_process_gathers_nothing() -> None:
    found = plan(processes=2, **{"train.replicas": 2})
    assert found.gathered == 0 and found.weights == plan().weights
    with pytest.raises(ValueError, match=r"train\.replicas is 2, but 3 processes"):
        plan(processes=3, **{"train.replicas": 2})


def test_a_chunked_loss_needs_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = plan()
    monkeypatch.setattr(chunked_loss, "MOST_LOGITS", TOKENS * IDS // 4)
    chunks = plan()
    assert chunks.chunked_loss and chunks.kept.logits < whole.kept.logits
    assert chunks.kept.activations == whole.kept.activations


@pytest.mark.parametrize("ffn", FEED_FORWARD)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_layer_has_a_dry_run(ffn: str, precision: str) -> None:
    found = plan(ffn=ffn, precision=precision)
    assert 0 < found.recomputed.activations < found.kept.activations
    assert found.kept.backward < found.recomputed.backward


def test_the_command_reports_whether_it_fits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["train", "quickstart", "--dry-run", "--memory", "0.01", "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main(words) == 0
    assert "it does not fit into 0.0 GiB a process" in capsys.readouterr().out
    assert main([*words, "--memory=64", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["fits"] is True and values["memory"] == 64 * GIB and not (tmp_path / "run").exists()
    assert MemoryPlan.from_dict(values).total == values["total"]
    # A field that is true or false needs no value to be turned on.
    for given, recompute in ((["--recompute"], True), (["--train.recompute", "false"], False), ([], False)):
        assert main([*words, *given, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["recompute"] is recompute
    assert main([*words, "--steps", "--json"]) == 2
    assert "--steps needs a value" in capsys.readouterr().err
    assert main(["train", "quickstart", "--memory", "3"]) == 2
    assert "belong to a dry run" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_needs_its_memory() -> None:
    with pytest.raises(ValueError, match="say how much memory it has"):
        plan(device="cuda")
    assert plan(device="cuda", memory=80).precision == "fp32"


def test_sources_that_cannot_be_counted_are_refused(tmp_path: Path) -> None:
    LlamaConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="decoders of glassmoe only"):
        plan(**{"start.source": str(tmp_path)})
    with pytest.raises(ValueError, match=r"start\.source is missing"):
        plan(**{"start.shape": "source"})


MEASURED = """
import resource, sys, torch
from glassmoe.config import load

from glassmoe.model import GlassForCausalLM
from glassmoe.model.loss import next_token_loss
from glassmoe.training.optimizer import build_optimizers
from glassmoe.training.resolve import model_settings

def train(config):
    rows, length = config.train.micro_rows, int(config.data.rows.split(":")[1])
    model = GlassForCausalLM(model_settings(config, length)).train()
    for block in model.model.layers:
        block.recompute = config.train.recompute
    optimizers = build_optimizers(model, config.optimizer)
    for _ in range(2):
        for _ in range(2):
            tokens = torch.randint(32, (rows, length))
            loss, losses = next_token_loss(model, tokens, torch.full((rows,), length))
            torch.stack([loss, *losses.values()]).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


config, small = load(sys.argv[1]), load(sys.argv[1])
small.model.layers, small.model.width, small.model.active_width = 1, 32, 64
small.data.rows, small.train.micro_rows = "games:17", 2
train(small)  # libraries that torch loads when they are first used
pages = int(open("/proc/self/statm").read().split()[1])
before = pages * resource.getpagesize()
train(config)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(("ffn", "recompute"), [("gelu", False), ("moe-x", False), ("moe-x", True)])
def test_the_peak_is_what_a_process_measures(ffn: str, recompute: bool, tmp_path: Path) -> None:
    shape = {"ffn": ffn, "layers": 6, "heads": 4, "width": 256, "active_width": 1024, "data.rows": "games:257"}
    batch = {"batch_rows": 32, "micro_rows": 16, "device": "cpu", "precision": "fp32", "optimizer.name": "adamw"}
    config, _ = configure(None, {**shape, **batch, "recompute": recompute})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "config.yaml")]
    # glibc returns freed memory at once, so that the process holds what its tensors need.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **allocator})
    measured = int(run.stdout)
    assert glassmoe.train(config, dry_run=True).total == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
def test_the_page_has_the_computed_table() -> None:
    path = Path(__file__).parents[2] / "docs/build_fits.py"
    spec = importlib.util.spec_from_file_location("build_fits", path)
    assert spec is not None and spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    assert build.page() == build.PAGE.read_text(encoding="utf-8")
