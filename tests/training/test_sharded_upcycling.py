"""Upcycling on two processes: the start, the course of training and the published weights are those of one process."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from glassmoe.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, StartConfig, TrainConfig
from glassmoe.data.corpus import Corpus
from glassmoe.model.subject import load_subject
from glassmoe.text.tokens import load_tokenizer, text_kind
from glassmoe.training import checkpoint
from glassmoe.training.language import train
from glassmoe.training.run import tokenizer_of
from glassmoe.training.tracking import read_metrics
from text_files import made_up_texts, prepared
from tiny_runs import assert_same_bits, on_processes, tiny, weights

USUAL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {**USUAL, "tie_word_embeddings": True},
    "GPTNeoX": USUAL,
    "GPT2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 40},
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random models of other makers, with text in the folder `text` of each."""
    folder = tmp_path_factory.mktemp("sources")
    prepared(folder / "first", made_up_texts(50))
    tokenizer = tokenizer_of(Corpus.open(folder / "first").kind, 40)
    tokenizer.save_pretrained(folder / "tokenizer")
    kind = text_kind(*load_tokenizer(folder / "tokenizer"))
    for family, sizes in FAMILIES.items():
        torch.manual_seed(1)
        ids = {"vocab_size": kind.size, "bos_token_id": kind.start, "eos_token_id": kind.start}
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{family}Config")(**sizes, **ids))
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(0, 0.1)
        model.save_pretrained(folder / family)
        tokenizer.save_pretrained(folder / family)
        prepared(folder / family / "text", made_up_texts(60), str(folder / family), valid_share=0.2)
    return folder


def in_place(source: Path, ffn: str, **start: Any) -> RunConfig:
    return RunConfig(
        data=DataConfig(path=str(source / "text"), rows="documents:33", tokens="text"),
        model=ModelConfig(ffn=ffn, num_experts=4),
        start=StartConfig(source=str(source), redraw=0.25, **start),
        optimizer=OptimizerConfig(warmup_steps=2),
        # Passes of two rows on one process and on two: some losses are means over a pass.
        train=TrainConfig(3, 12, 2, "fp32", eval_rows=8, eval_every=3, log_every=1, checkpoint_every=2, device="cpu"),
    )


def same_start(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one.keys() - {"checksum"}:
            same_start(one[name], other[name])
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            same_start(a, b)
    else:
        assert one == (pytest.approx(other, abs=2e-6) if isinstance(one, float) else other)


def test_two_processes_upcycle_as_one(sources: Path, noise_games: Path, tmp_path: Path) -> None:
    dense = train(tiny(noise_games, "gelu", steps=2, eval_every=2), tmp_path / "dense")
    own = tiny(noise_games, "switch", steps=3, batch_rows=12, micro_rows=2, eval_every=3, precision="fp32")
    own.start = StartConfig(source=str(dense), redraw=0.25)
    own.model.active_width = 64
    configs = {
        "llama": in_place(sources / "Llama", "moe-x", objective="distill", replace_layers=[1, 2]),
        "neox": in_place(sources / "GPTNeoX", "switch", learn="layers", replace_layers=[1]),
        "gpt2": in_place(sources / "GPT2", "relu"),
        "own": own,
    }
    one, two = (on_processes(count, tmp_path / str(count), configs) for count in (1, 2))
    for name in configs:
        first, second = (read_metrics(run / name / "metrics.jsonl") for run in (one, two))
        assert len(first) == len(second) == 3
        for a, b in zip(first, second, strict=True):
            assert a.loss == pytest.approx(b.loss, abs=2e-6, rel=2e-6), name
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=5e-6), name
        same_start(*(json.loads((run / name / "start.json").read_text()) for run in (one, two)))
        ours, theirs = weights(one / name), weights(two / name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=2e-6, msg=f"{name} {key}")
        newest = checkpoint.latest(two / name / "state")
        assert newest is not None and newest.is_dir()
    # What two processes wrote is an ordinary model, and a run that goes on.
    model = load_subject(str(two / "llama")).model
    assert type(model).__name__ == "UpcycledLlamaForCausalLM" and model.config.glassmoe["layers"] == [1, 2]
    for name in ("llama", "neox", "own"):
        newest = checkpoint.latest(shutil.copytree(two / name, two / f"{name}-again") / "state")
        assert newest is not None
        shutil.rmtree(newest)
    on_processes(2, two, {f"{name}-again": configs[name] for name in ("llama", "neox", "own")})
    for name in ("llama", "neox", "own"):
        assert_same_bits(two / f"{name}-again", two / name)
