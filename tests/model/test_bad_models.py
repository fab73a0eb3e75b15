"""Models and texts that cannot be opened as they are: one sentence each, through the public functions."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import glassmoe
from glassmoe.explaining.local import LocalChat
from glassmoe.text.tokens import train_tokenizer
from text_files import jsonl, made_up_texts


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "text.jsonl"
    file.write_text(jsonl([*made_up_texts(300), *(f"{n} <new> word" for n in range(40))]), encoding="utf-8")
    return file


def tied_llama(folder: Path, added: str | None = None) -> Path:
    """A tiny Llama with tied embeddings and a row for every token of its tokenizer, except one that is added to it."""
    tokenizer = Tokenizer.from_str(train_tokenizer(made_up_texts(80), 300))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 64}
    config = LlamaConfig(
        **sizes, num_attention_heads=4, vocab_size=tokenizer.get_vocab_size(), bos_token_id=0, eos_token_id=0,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    if added:
        tokenizer.add_tokens([AddedToken(added, normalized=False)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>").save_pretrained(folder)
    return folder


def opened(model: Path, texts: Path, out: Path) -> object:
    settings = {"layers": [1], "coders": "transcoder", "k": 4, "features": 64, "context": 16, "batch_tokens": 128}
    return glassmoe.decompose(model, data=texts, out=out, tokens=512, device="cpu", **settings)


def test_tied_embeddings_without_a_row_for_an_added_token(texts: Path, tmp_path: Path) -> None:
    opened(tied_llama(tmp_path / "whole"), texts, tmp_path / "out")
    added = tied_llama(tmp_path / "added", "<new>")
    message = r"the tokenizer of .*added has 301 tokens and the model rows for 300, so that .* resize the model's"
    with pytest.raises(ValueError, match=message):
        opened(added, texts, tmp_path / "other")


def test_a_text_of_50_tokens(tmp_path: Path) -> None:
    model, file = tied_llama(tmp_path / "model"), tmp_path / "short.jsonl"
    file.write_text("".join(json.dumps({"text": f"{n} the cat sees"}) + "\n" for n in range(10)))
    with pytest.raises(ValueError, match=r"cut 'packed:129' gives no row at all from \d+ documents with \d+ tokens"):
        glassmoe.decompose(model, layers=[1], data=file, out=tmp_path / "out", device="cpu")
    file.write_text(json.dumps({"text": "the cat sees a big red house " * 7}) + "\n")
    with pytest.raises(ValueError, match=r"its validation split is empty.*there is only one"):
        glassmoe.decompose(model, layers=[1], data=file, out=tmp_path / "one", device="cpu")


def test_a_base_model_without_a_chat_template_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = LocalChat(tied_llama(tmp_path / "base"), device="cpu")
    assert "base has no chat template, as base models have none: it is asked in plain text" in capsys.readouterr().err
    assert chat.ask([[{"role": "user", "content": "the cat"}]])[0] is not None
    (tmp_path / "base/chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    LocalChat(tmp_path / "base", device="cpu")
    assert not capsys.readouterr().err
