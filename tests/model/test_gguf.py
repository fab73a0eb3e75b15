"""GGUF files wherever a model is: a random Llama written as one gives what it is in transformers' own format."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

import glassmoe
from glassmoe.model.loading import foreign_settings
from glassmoe.model.subject import load_subject
from glassmoe.text.gguf import from_pretrained, gguf_of
from glassmoe.text.tokens import load_tokenizer, text_kind, train_tokenizer
from made_gguf import random_llama, write_gguf
from text_files import jsonl, made_up_texts


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return random_llama()


@pytest.fixture(scope="module")
def tokenizer() -> str:
    return train_tokenizer(made_up_texts(80), 300)


def test_a_file_and_its_folder_are_the_model(model: LlamaForCausalLM, tokenizer: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny/tiny.gguf", model, tokenizer)
    ids = torch.tensor([[0, 5, 9, 40, 200, 7]])
    with torch.no_grad():
        expected = model.eval()(ids).logits
        for name in (file, file.parent):
            subject = load_subject(str(name), "cpu")
            torch.testing.assert_close(subject.model(ids).logits, expected, rtol=1e-4, atol=1e-4)
            assert subject.model.dtype == torch.float32 and subject.model.config.model_type == "llama"
            assert not hasattr(subject.model.config, "quantization_config")
    text = "the cat sat on a mat, twice"
    ours = text_kind(*load_tokenizer(file))
    np.testing.assert_array_equal(ours.encode(text), text_kind(tokenizer, "<|endoftext|>").encode(text))


def test_coders_of_it_are_fitted_and_opened_again(model: LlamaForCausalLM, tokenizer: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny/tiny.gguf", model, tokenizer)
    (tmp_path / "text.jsonl").write_text(jsonl(made_up_texts(400)))
    fitted = glassmoe.decompose(
        file, layers=[1], coders="transcoder,moe-x", k=4, data=tmp_path / "text.jsonl", features=64, tokens=2048,
        context=16, batch_tokens=256, out=tmp_path / "out", device="cpu",
    )  # fmt: skip
    assert list(fitted) == ["1/transcoder-k4", "1/moe-x-k4"]
    assert glassmoe.load(tmp_path / "out", device="cpu").features("the cat", name="1/moe-x-k4").tokens
    with pytest.raises(ValueError, match="layer 7 is not in this model: it has layers 0 to 1"):
        glassmoe.decompose(file, layers=[7], data=tmp_path / "text.jsonl", out=tmp_path / "other")


def test_an_unknown_architecture_is_refused_in_a_sentence(
    model: LlamaForCausalLM, tokenizer: str, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "odd.gguf", model, tokenizer, "notafamily")
    with pytest.raises(ValueError, match=r"odd.gguf could not be loaded: .*notafamily.*a family that transformers has"):
        load_subject(str(file), "cpu")


def test_which_file_a_folder_means(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    assert gguf_of(tmp_path / "one") is None and gguf_of("gpt2") is None
    (tmp_path / "one/a.gguf").touch()
    assert gguf_of(tmp_path / "one") == tmp_path / "one/a.gguf" == gguf_of(tmp_path / "one/a.gguf")
    (tmp_path / "one/b.gguf").touch()
    with pytest.raises(ValueError, match=r"holds 2 \.gguf files; give the path of one, such as .*a\.gguf"):
        load_subject(str(tmp_path / "one"), "cpu")
    (tmp_path / "one/config.json").touch()
    assert gguf_of(tmp_path / "one") is None


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").touch()
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr("glassmoe.text.gguf.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"cannot be read without the package gguf; .*glassmoe\[gguf\]"):
        from_pretrained(tmp_path)


def test_quantised_weights_are_refused_in_a_sentence(tmp_path: Path) -> None:
    config = {"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"are quantised \(bitsandbytes\); give the model with ordinary weights"):
        foreign_settings(str(tmp_path))
