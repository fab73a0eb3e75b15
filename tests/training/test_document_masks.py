"""Packed rows whose documents are read one by one, against the documents alone."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

from glassmoe.api.measuring import evaluate
from glassmoe.coders.configuration import CoderConfig, FitConfig
from glassmoe.config import DataConfig, ModelConfig, RunConfig, StartConfig, TrainConfig
from glassmoe.data.corpus import Corpus, Rows
from glassmoe.model import FEED_FORWARD, GlassConfig, GlassForCausalLM
from glassmoe.model.loss import mask_inputs, next_token_loss, total_loss
from glassmoe.model.subject import load_subject
from glassmoe.text.tokens import load_tokenizer, text_kind
from glassmoe.training.language import train
from glassmoe.training.run import tokenizer_of
from glassmoe.training.tracking import read_metrics
from text_files import made_up_texts, prepared
from tiny_runs import tiny

SHAPES: dict[str, dict[str, Any]] = {
    "learned": {},
    "rotary": {"positions": "rotary", "norm": "rmsnorm", "kv_heads": 1},
    "parallel": {"positions": "rotary", "rotary_share": 0.5, "parallel_residual": True},
}
DOCUMENTS = (5, 1, 7, 3)
"""Lengths of the documents of a row."""


def model_of(ffn: str = "moe-x", **shape: Any) -> GlassForCausalLM:
    torch.manual_seed(0)
    sizes = {"width": 16, "layers": 2, "heads": 2, "active_width": 32, "num_experts": 4, "context": 16}
    return GlassForCausalLM(GlassConfig(ffn=ffn, init_std=0.3, **{**sizes, **shape})).eval()


def packed_row() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(32, (1, sum(DOCUMENTS)), generator=torch.Generator().manual_seed(0))
    return tokens, torch.arange(len(DOCUMENTS)).repeat_interleave(torch.tensor(DOCUMENTS)).unsqueeze(0)


@pytest.mark.parametrize(
    ("ffn", "shape"), [*((ffn, "learned") for ffn in FEED_FORWARD), *(("relu", s) for s in SHAPES)]
)
@torch.no_grad()
def test_logits_of_a_packed_row_are_those_of_its_documents(ffn: str, shape: str) -> None:
    model = model_of(ffn, **SHAPES[shape])
    tokens, documents = packed_row()
    packed = model(input_ids=tokens, use_cache=False, **mask_inputs(model, documents)).logits[0]
    alone = [model(input_ids=part.unsqueeze(0), use_cache=False).logits[0] for part in tokens[0].split(DOCUMENTS)]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-4, atol=1e-5)
    unmasked = model(input_ids=tokens, use_cache=False).logits[0]
    assert not torch.allclose(packed[5:], unmasked[5:], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_a_packed_row_are_those_of_its_documents(recompute: bool) -> None:
    tokens, documents = packed_row()
    found = []
    for packed in (True, False):
        model = model_of("relu", **SHAPES["rotary"]).train()
        for block in model.model.layers:
            block.recompute = recompute
        if packed:
            loss, _ = next_token_loss(model, tokens, torch.tensor([tokens.shape[1]]), documents)
        else:  # each document alone, whose last label is the first token of the next one
            starts = np.cumsum((0, *DOCUMENTS))
            losses = []
            for start, end in pairwise(starts):
                labels = tokens[0, start + 1 : end + 1]
                logits = model(input_ids=tokens[:, start:end], use_cache=False).logits[0]
                losses.append(F.cross_entropy(logits[: len(labels)], labels, reduction="sum"))
            loss = torch.stack(losses).sum()
        loss.backward()
        found.append((loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_a_run_learns_and_is_measured_with_masks(noise_games: Path, tmp_path: Path) -> None:
    runs = {}
    for masked in (False, True):
        config = tiny(noise_games, "relu", steps=3, eval_every=3, eval_rows=8, precision="fp32")
        config.data = DataConfig(path=str(noise_games), rows="packed:64", document_mask=masked)
        runs[masked] = train(config, tmp_path / str(masked))
    losses = {masked: read_metrics(run / "metrics.jsonl") for masked, run in runs.items()}
    assert losses[False][0].loss != losses[True][0].loss and losses[False][-1].loss != losses[True][-1].loss
    model = load_subject(str(runs[True])).model
    rows = Rows(Corpus.open(noise_games).split("valid"), "packed:64")
    tokens_RN, _ = rows.batch(np.arange(8))
    total, labels = 0.0, 0
    for tokens_N, documents_N in zip(torch.from_numpy(tokens_RN).long(), rows.documents(np.arange(8)), strict=True):
        bounds = [0, *(np.flatnonzero(np.diff(documents_N)) + 1).tolist(), len(tokens_N)]
        for start, end in pairwise(bounds):
            targets = tokens_N[start + 1 : end + 1]
            with torch.no_grad():
                logits = model(input_ids=tokens_N[None, start:end], use_cache=False).logits[0][: len(targets)]
            total += float(F.cross_entropy(logits, targets, reduction="sum"))
            labels += len(targets)
    assert losses[True][-1].valid_loss == pytest.approx(total / labels, abs=1e-5)
    assert total_loss(model, rows, np.arange(8), 4, document_mask=True)[0] == pytest.approx(total, abs=1e-2)
    measured = evaluate(str(runs[True]), "ppl", rows=8)
    assert measured.loss == pytest.approx(total / labels, abs=1e-5)


def test_rows_of_one_document_need_no_mask(noise_games: Path, tmp_path: Path) -> None:
    runs = []
    for masked in (False, True):
        config = tiny(noise_games, "relu", steps=2, eval_every=2)
        config.data.document_mask = masked
        runs.append(train(config, tmp_path / str(masked)))
    one, other = (read_metrics(run / "metrics.jsonl") for run in runs)
    assert [line.loss for line in one] == [line.loss for line in other]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("sources")
    prepared(folder / "first", made_up_texts(50))
    tokenizer = tokenizer_of(Corpus.open(folder / "first").kind, 40)
    tokenizer.save_pretrained(folder / "tokenizer")
    kind = text_kind(*load_tokenizer(folder / "tokenizer"))
    usual = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    settings: dict[str, dict[str, Any]] = {
        "Llama": usual,
        "Mistral": {**usual, "num_key_value_heads": 1, "sliding_window": 4},
        "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40},
        "Bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    }

    def source(family: str) -> Path:
        torch.manual_seed(1)
        ids = {"vocab_size": kind.size, "bos_token_id": kind.start, "eos_token_id": kind.start}
        config = getattr(transformers, f"{family}Config")(**settings[family], **ids)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(0, 0.3)
        model.save_pretrained(folder / family)
        tokenizer.save_pretrained(folder / family)
        prepared(folder / family / "text", made_up_texts(60), str(folder / family), valid_share=0.2)
        return folder / family

    return source


def in_place(source: Path, **more: Any) -> RunConfig:
    return RunConfig(
        data=DataConfig(path=str(source / "text"), rows="packed:33", tokens="text", document_mask=True),
        model=ModelConfig(ffn="switch", num_experts=2),
        start=StartConfig(source=str(source), noise=0.0, **more),
        train=TrainConfig(steps=1, batch_rows=4, micro_rows=4, eval_rows=4, precision="fp32"),
    )


@pytest.mark.parametrize(
    ("family", "objective"), [("Llama", "distill"), ("Mistral", "next-token"), ("GPT2", "distill")]
)
def test_models_of_other_makers_read_documents_one_by_one(
    family: str, objective: str, sources: Callable[[str], Path], tmp_path: Path
) -> None:
    source = sources(family)
    out = train(in_place(source, objective=objective), tmp_path / "run")
    model = load_subject(str(source)).model
    rows = Rows(Corpus.open(source / "text").split("valid"), "packed:33")
    found, labels = total_loss(model, rows, np.arange(min(4, len(rows))), 4, document_mask=True)
    # The copy computes what the source computes, masks included.
    receipt = (out / "start.json").read_text()
    assert f'"source": {found / labels:.4f}'[:-2] in receipt


def test_a_family_without_positions_is_refused(sources: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a bloom model reads all documents of a row together; leave it out"):
        train(in_place(sources("Bloom")), tmp_path / "run")


def test_coders_are_refused() -> None:
    with pytest.raises(ValueError, match="coders learn from rows that the model reads as a whole"):
        FitConfig(source="x", coder=CoderConfig(layer=0), data=DataConfig(document_mask=True))
