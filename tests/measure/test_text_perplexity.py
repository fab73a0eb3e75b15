"""Perplexity on texts: by hand, and against transformers' own loss, on models of several families and with coders."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, LlamaConfig
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from glassmoe.cli.main import main
from glassmoe.coders.configuration import CoderConfig
from glassmoe.coders.kinds import build_coder
from glassmoe.data.corpus import Corpus
from glassmoe.data.tokens import TokenKind
from glassmoe.inspect.edit import spliced
from glassmoe.inspect.readers import open_model
from glassmoe.measure.saved import read_measure
from glassmoe.measure.text_perplexity import (
    LastWords,
    Passes,
    TextPerplexity,
    Window,
    evaluate_texts,
    score,
    text_perplexities,
    windows,
)
from glassmoe.model import GlassForCausalLM
from glassmoe.model.families import text_settings
from glassmoe.model.shared_blocks import SharedBlocks
from glassmoe.model.subject import load_subject, place_in
from glassmoe.text.evaluation import EvaluationText
from glassmoe.text.tokens import text_kind
from made_coders import made_coder
from text_files import jsonl, made_up_texts, prepared, random_gpt2, text_run

ENDS = {"bos_token_id": 0, "eos_token_id": 0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "corpus"
    prepared(folder, made_up_texts(150), valid_share=0.2)
    return folder


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_run(tmp_path_factory.mktemp("run") / "run", corpus, "moe-x")


def as_text(texts: list[str], passages: bool = False) -> EvaluationText:
    return EvaluationText("made-up", texts, "made-up.jsonl", "0" * 64, "as it is", passages)


def text_perplexity(
    model: object, kind: TokenKind, text: EvaluationText, window: int, stride: int | None = None
) -> TextPerplexity:
    return text_perplexities(Passes(model), kind, text, window, stride)[None]


def test_windows_by_hand() -> None:
    assert windows(5, 2) == [Window(0, 2, 2), Window(2, 4, 2), Window(3, 5, 1)]
    assert windows(6, 4, 1) == [Window(0, 4, 4), Window(1, 5, 1), Window(2, 6, 1)]
    assert windows(3, 8) == [Window(0, 3, 3)] and windows(0, 8) == []
    for targets, window, stride in ((17, 5, 3), (5, 5, 5), (11, 4, 2)):
        predicted = [place for _, end, new in windows(targets, window, stride) for place in range(end - new, end)]
        assert predicted == list(range(targets))
    for stride in (0, 5):
        with pytest.raises(ValueError, match=f"a stride of {stride} does not fit windows of 4 tokens"):
            windows(9, 4, stride)


def test_uniform_predictions_by_hand(corpus: Path) -> None:
    """Zero weights give every one of V tokens the same chance: log V nats a token."""
    kind = Corpus.open(corpus).kind
    model = GPT2LMHeadModel(
        GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=kind.size, n_positions=16, **ENDS)
    ).eval()
    for p in model.parameters():
        p.data.zero_()
    texts = ["the cat runs", "a dog\n na\u00efve dog"]
    found = text_perplexity(model, kind, as_text(texts, passages=True), 8)
    tokens = sum(len(kind.encode(text)) - 1 for text in texts)
    nats = tokens * math.log(kind.size)
    assert (found.tokens, found.words, found.bytes, found.documents) == (tokens, 7, 12 + 17, 2)
    assert found.loss == pytest.approx(math.log(kind.size), rel=1e-6)
    assert found.perplexity == pytest.approx(kind.size, rel=1e-5)
    assert found.word_perplexity == pytest.approx(math.exp(nats / 7), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / 29, rel=1e-6)
    last = len(kind.encode(texts[0])) - len(kind.encode("the cat"))
    last += len(kind.encode(texts[1])) - len(kind.encode("a dog\n na\u00efve"))
    assert found.last_word is not None and found.last_word.perplexity == pytest.approx(
        math.exp(last * math.log(kind.size) / 2), rel=1e-5
    )
    assert (found.last_word.accuracy, found.last_word.words) == (0.0, 2)
    # White space after the last word does not belong to it.
    spaced = text_perplexity(model, kind, as_text([text + " \n" for text in texts], passages=True), 8)
    assert spaced.tokens > tokens and spaced.last_word.perplexity == pytest.approx(found.last_word.perplexity, rel=1e-5)


def models(corpus: Path) -> dict[str, object]:
    size = Corpus.open(corpus).kind.size
    small = {"vocab_size": size, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"intermediate_size": 32, "max_position_embeddings": 40, "initializer_range": 0.3, **ENDS}
    return {
        "gpt2": GPT2Config(
            n_embd=16, n_layer=2, n_head=2, vocab_size=size, n_positions=40, initializer_range=0.3, **ENDS
        ),
        "gpt_neox": GPTNeoXConfig(**small),
        "llama": LlamaConfig(**small, num_key_value_heads=1),
    }


def opened(family: str, corpus: Path, run: Path) -> torch.nn.Module:
    """The model of the run, or one of transformers with new weights."""
    if family == "glassmoe":
        return load_subject(str(run), "cpu").model
    return AutoModelForCausalLM.from_config(models(corpus)[family]).eval()


@pytest.mark.parametrize("stride", [None, 5])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "glassmoe"])
def test_against_the_loss_of_transformers(family: str, stride: int | None, corpus: Path, run: Path) -> None:
    """Each window by itself through the model's own `labels`, everything that is not new masked."""
    torch.manual_seed(3)
    kind = Corpus.open(corpus).kind
    model = opened(family, corpus, run)
    texts = made_up_texts(6, seed=5)
    found = text_perplexity(model, kind, as_text(texts), 12, stride)
    nats, tokens = 0.0, 0
    for text in texts:
        ids = torch.from_numpy(kind.encode(text).astype(np.int64))
        done = 0
        while done < len(ids) - 1:
            new = min((stride or 12) if done else 12, len(ids) - 1 - done)
            done += new
            # One more is read than is given, the last label: `labels` shifts by itself.
            read = ids[max(0, done - 12) : done + 1]
            labels = read.clone()
            labels[: len(read) - new] = -100
            with torch.no_grad():
                nats += float(model(input_ids=read[None], labels=labels[None]).loss) * new
            tokens += new
    assert found.tokens == tokens
    assert found.loss == pytest.approx(nats / tokens, abs=1e-4)


def test_last_words_against_one_passage_at_a_time(corpus: Path) -> None:
    torch.manual_seed(3)
    kind = Corpus.open(corpus).kind
    model = AutoModelForCausalLM.from_config(models(corpus)["gpt2"]).eval()
    texts = ["the cat sees the dog", "a red house", "alone", "but the \u6771\u4eac tree"]
    found = text_perplexity(model, kind, as_text(texts, passages=True), 39).last_word
    nats = []
    for text in (texts[0], texts[1], texts[3]):
        ids = torch.from_numpy(kind.encode(text).astype(np.int64))
        before = len(kind.encode(text.rpartition(" ")[0]))
        with torch.no_grad():
            log_p = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        nats.append(-sum(float(log_p[place - 1, ids[place]]) for place in range(before, len(ids))))
    assert found.words == 3
    assert math.log(found.perplexity) == pytest.approx(sum(nats) / 3, abs=1e-4)


def test_a_word_that_the_model_is_sure_of_is_right(corpus: Path) -> None:
    kind = Corpus.open(corpus).kind
    row = kind.encode("the cat the cat")

    class Sure(torch.nn.Module):
        config = GPT2Config(vocab_size=kind.size, **ENDS)

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: torch.Tensor, **_: object) -> object:
            logits = torch.nn.functional.one_hot(torch.roll(input_ids, -1, 1), kind.size) * 50.0
            logits[:, -1] = 0.0
            logits[:, -1, int(row[-1])] = 50.0
            return type("Output", (), {"logits": logits})

    found = text_perplexity(Sure(), kind, as_text(["the cat the cat"], passages=True), 32)
    assert found.last_word == LastWords(pytest.approx(1.0), 1.0, 1)
    assert found.perplexity == pytest.approx(1.0)


def test_splitting_a_pass_changes_nothing(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from glassmoe.measure import text_perplexity as module

    torch.manual_seed(3)
    kind = Corpus.open(corpus).kind
    model = AutoModelForCausalLM.from_config(models(corpus)["llama"]).eval()
    rows = [kind.encode(text) for text in made_up_texts(9, seed=4)]
    together = score(Passes(model), rows, 20, 7)[None]
    monkeypatch.setattr(module, "LOGITS", 1)
    alone = score(Passes(model), rows, 20, 7)[None]
    for a, b in zip(together.nats, alone.nats, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "glassmoe"])
def test_passes_that_share_blocks_equal_whole_passes_to_the_last_bit(family: str, corpus: Path, run: Path) -> None:
    """Naive: each coder in place of its target in passes of their own."""
    torch.manual_seed(3)
    kind = Corpus.open(corpus).kind
    model = opened(family, corpus, run)
    settings, coders = text_settings(model), {}
    width = settings.hidden_size
    for layer in range(settings.num_hidden_layers):
        for coder_kind, site in (("topk", "stream"), ("mxd", "mlp"), ("transcoder", "mlp")):
            config = CoderConfig(kind=coder_kind, layer=layer, site=site, features=64, k=8).complete(width, 1000)
            coder = build_coder(config, width, 100, 1000).eval()
            for p in coder.parameters():
                torch.nn.init.normal_(p, std=0.3)
            coders[f"{layer}/{coder_kind}"] = (coder, place_in(model, layer, site))
    coders["model"] = coders["0/topk"]  # no coder's name stands for the model by itself
    text = as_text(made_up_texts(9, seed=4), passages=True)
    shared = text_perplexities(Passes(model, coders), kind, text, 20, 7)
    assert list(shared) == [None, *coders] and len({one.loss for one in shared.values()}) == len(coders)
    assert shared[None] == text_perplexity(model, kind, text, 20, 7)
    for name, place in coders.items():
        with spliced(model, *place):
            assert shared[name] == text_perplexity(model, kind, text, 20, 7)
    without = text_perplexities(Passes(model, coders, base=False), kind, text, 20, 7)
    assert without == {name: one for name, one in shared.items() if name is not None}


def test_blocks_before_the_coders_are_computed_once(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four coders at the MLP of the last of three layers: the batch takes one whole pass and four of the last block
    alone."""
    foreign = random_gpt2(tmp_path / "gpt2", corpus)
    for kind in ("transcoder", "skip-transcoder", "mxd", "switch"):
        made_coder(tmp_path / "coders/2" / kind, kind, foreign, layer=2)
    file = tmp_path / "held.jsonl"
    file.write_text(jsonl(made_up_texts(3, seed=9)))
    computed: list[int] = []
    forward = GPT2Block.forward

    def counted(block: GPT2Block, *args: object, **kwargs: object) -> object:
        computed.append(block.attn.layer_idx)
        return forward(block, *args, **kwargs)

    monkeypatch.setattr(GPT2Block, "forward", counted)
    monkeypatch.setattr(SharedBlocks, "_agrees", lambda *_: True)  # its passes over a few tokens are not counted
    assert main(["eval", "ppl", str(tmp_path / "coders"), "--on", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["what"] for one in found] == ["model", "2/mxd", "2/skip-transcoder", "2/switch", "2/transcoder"]
    assert len({one["loss"] for one in found}) == 5
    assert computed == [0, 1, 2, 2, 2, 2, 2]


def test_the_verb_on_a_run_a_foreign_model_and_a_coder(
    run: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, passages = tmp_path / "held.jsonl", tmp_path / "p.txt"
    text.write_text(jsonl(made_up_texts(8, seed=9)))
    passages.write_text("the cat sees the dog\na big red tree\n")
    assert main(["eval", "ppl", str(run), "--on", f"{text},lambada={passages}", "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)
    assert [(one["what"], one["on"], one["window"]) for one in ours] == [
        ("model", "held", 32),
        ("model", "lambada", 32),
    ]
    kept = read_measure(run, "ppl-held")
    assert kept is not None and kept.values["loss"] == ours[0]["loss"] and kept.data_sha256 == ours[0]["sha256"]
    assert main(["eval", "ppl", str(run), "--on", f"lambada={passages}"]) == 0
    shown = capsys.readouterr().out
    assert "lambada, whole passage" in shown and "lambada, last word" in shown and "2 documents, 9 words" in shown

    foreign = random_gpt2(tmp_path / "gpt2", corpus)
    coder = made_coder(tmp_path / "coder", "topk", foreign)
    found = evaluate_texts(
        *open_model(tmp_path / "coder"), [as_text(made_up_texts(4, seed=2))], window=20, stride=10
    ).texts
    assert [one.what for one in found] == ["model", "coder"]
    subject = load_subject(str(foreign), "cpu")
    rows = [subject.kind().encode(each) for each in made_up_texts(4, seed=2)]
    assert isinstance(subject.model, GPT2LMHeadModel)
    plain = score(Passes(subject.model), rows, 20, 10)[None]
    with spliced(subject.model, coder, place_in(subject.model, 1, "stream")):
        read = score(Passes(subject.model), rows, 20, 10)[None]
    for one, by_hand in zip(found, (plain, read), strict=True):
        assert one.loss == pytest.approx(float(np.concatenate(by_hand.nats).mean()), abs=1e-5)
    assert found[0].loss != pytest.approx(found[1].loss, abs=1e-3)
    assert read_measure(tmp_path / "coder", "ppl-made-up") is not None


def test_mistakes(run: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "t.txt"
    text.write_text("the cat")
    for words, message in (
        (["--on", str(text), "--window", "99"], "--window 99 is more than the context"),
        (["--on", str(text), "--stride", "33"], "a stride of 33 does not fit windows of 32 tokens"),
        (["--on", str(text), "--rows", "3"], "rows does not go with on"),
        (["--stride", "3"], "stride needs on, the texts to measure on"),
    ):
        assert main(["eval", "ppl", str(run), *words]) == 2
        assert message in capsys.readouterr().err
    kind = Corpus.open(corpus).kind
    small = GlassForCausalLM(
        type(load_subject(str(run), "cpu").model.config)(vocab_size=9, width=16, heads=2, layers=1)
    )
    with pytest.raises(
        ValueError, match=r"the tokenizer has the id \d+, but the model has 9 ids; use the tokenizer of the model"
    ):
        text_perplexity(small, kind, as_text(["the cat"]), 8)
    assert text_kind(kind.tokenizer or "").size == kind.size
