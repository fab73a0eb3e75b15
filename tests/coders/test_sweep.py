"""From a few settings to a sweep's configuration."""

from pathlib import Path

import pytest

from coder_twins import parameter_count
from glassmoe.coders.configuration import learning_rate
from glassmoe.coders.sweep import sweep
from glassmoe.data.corpus import Corpus
from text_files import jsonl, made_up_texts, prepared, random_gpt2


def test_a_short_fit_learns_faster() -> None:
    assert learning_rate(117_187) == pytest.approx(1e-4)
    assert learning_rate(58_593) == pytest.approx(2e-4, rel=1e-4)
    assert learning_rate(500) == 6e-3


def test_coders_are_matched_and_lengths_are_whole(tmp_path: Path) -> None:
    text = tmp_path / "text"
    prepared(text, made_up_texts(100), valid_share=0.3)
    model = str(random_gpt2(tmp_path / "model", text))
    found = sweep(
        model, layers=[0, 2], coders=["mxd", "transcoder", "sae-l1"], ks=[4, 8], data=str(text), out=tmp_path,
        context=32, features=400, tokens=100_000, batch_tokens=1000, site="stream",
    )  # fmt: skip
    names = ["mxd-k4", "mxd-k8", "transcoder-k4", "transcoder-k8", "sae-l1"]
    assert list(found.fits()) == [f"{layer}/{name}" for layer in (0, 2) for name in names]
    assert (found.train.batch_rows, found.train.steps, found.data.rows) == (31, 100, "packed:33")
    mixture, sae = found.coders[0], found.coders[4]
    assert (mixture.hidden, mixture.glu, mixture.activation) == (64, False, "gelu-tanh")
    # 400 * 33 + 16 parameters of a transcoder, less 64 * 17 + 64 * 16 + 16 around the experts, 33 an expert
    assert mixture.features == (400 * 33 + 16 - 64 * 17 - 64 * 16 - 16) // 33
    assert sae.site == "stream" and sae.features == 400
    theirs = sweep(
        model, layers=[0], coders=["mxd", "transcoder", "sae-topk"], ks=[4], data=str(text), out=tmp_path,
        context=32, features=400, reference=True,
    ).coders  # fmt: skip
    # The papers' code takes the 400 biases of the transcoder for the 64 of the hidden units.
    assert theirs[0].features == (400 * 33 + 16 - 64 * 16 - 64 * 16 - 16 - 400) // 33
    assert [coder.clips for coder in theirs] == [False, False, True] and sae.clips


@pytest.mark.parametrize("steps", [1, 5, 10, 12, 40, 79, 80, 81, 200, 1000])
def test_a_tenth_of_the_steps_validates_at_most(steps: int, tmp_path: Path) -> None:
    text = tmp_path / "text"
    prepared(text, made_up_texts(100), valid_share=0.3)
    model = str(random_gpt2(tmp_path / "model", text))
    found = sweep(
        model, layers=[0], coders=["transcoder"], ks=[4], data=str(text), out=tmp_path, context=32, features=40,
        tokens=steps * 32, batch_tokens=32,
    ).train  # fmt: skip
    validations = sum(done % found.eval_every == 0 or done == steps for done in range(1, steps + 1))
    assert found.steps == steps and validations <= max(1, steps / 10 + 1)
    # Validations read a tenth of the tokens of the fit at most, where a tenth is as much as a row each.
    assert validations * found.eval_rows <= max(validations, steps / 10)


def test_variants_of_one_kind_lie_beside_each_other_and_are_matched_each(tmp_path: Path) -> None:
    text = tmp_path / "text"
    prepared(text, made_up_texts(100), valid_share=0.3)
    model = str(random_gpt2(tmp_path / "model", text))
    names = ["mxd", "mxd-one", "mxd-relu", "mxd-gelu", "mxd-glu"]
    found = sweep(model, layers=[1], coders=names, ks=[4], data=str(text), out=tmp_path, context=32, features=400)
    assert list(found.fits()) == [f"1/{name}-k4" for name in names]
    forms = [(coder.gate, coder.activation, coder.glu) for coder in found.coders]
    assert forms == [
        ("signed", "gelu-tanh", False), ("one", "gelu-tanh", False), ("signed", "relu", False),
        ("signed", "gelu", False), ("signed", "gelu-tanh", True),
    ]  # fmt: skip
    totals = [parameter_count(coder, 16) for coder in found.coders]
    assert all(400 * 33 + 16 - 33 < total <= 400 * 33 + 16 for total in totals)
    assert found.coders[4].features < found.coders[0].features


def test_a_corpus_without_a_validation_document_at_one_percent_takes_ten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(tmp_path / "text", made_up_texts(100), valid_share=0.3)
    model = str(random_gpt2(tmp_path / "model", tmp_path / "text"))
    data = tmp_path / "small.jsonl"
    data.write_text(jsonl(made_up_texts(123, seed=0)))
    found = sweep(model, layers=[1], coders=["sae-topk"], ks=[4], data=str(data), out=tmp_path / "out", context=32)
    assert "none of the 123 documents was drawn for validation at a share of 1%: taking 10%" in capsys.readouterr().err
    corpus = Corpus.open(tmp_path / "out/text")
    documents = {split: len(corpus.split(split).offsets) - 1 for split in ("train", "valid")}
    assert documents["train"] + documents["valid"] == 123 and 3 <= documents["valid"] <= 30
    assert found.data.path == str(tmp_path / "out/text")


def test_other_text_is_never_taken_for_that_of_an_earlier_call(tmp_path: Path) -> None:
    prepared(tmp_path / "text", made_up_texts(100), valid_share=0.3)
    model = str(random_gpt2(tmp_path / "model", tmp_path / "text"))
    first, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text(jsonl(made_up_texts(200)))
    other.write_text(jsonl(made_up_texts(300)))
    out = tmp_path / "out"

    def documents(data: Path) -> int:
        sweep(model, layers=[1], coders=["sae-topk"], ks=[4], data=str(data), out=out, context=32)
        corpus = Corpus.open(out / "text")
        return sum(len(corpus.split(split).offsets) - 1 for split in ("train", "valid"))

    assert documents(first) < documents(other)
    written = (out / "text/manifest.json").stat().st_mtime_ns
    moved = other.rename(tmp_path / "c.jsonl")
    assert documents(moved) > 0 and (out / "text/manifest.json").stat().st_mtime_ns == written
    # Coders that have been fitted to one text are not resumed with another.
    (out / "1/sae-topk-k4").mkdir(parents=True)
    (out / "1/sae-topk-k4/metrics.jsonl").touch()
    with pytest.raises(ValueError, match=r"out was made with other data: .*b.jsonl, not as now .*a.jsonl. Give"):
        documents(first)
    assert documents(moved) > 0


@pytest.mark.parametrize(
    ("texts", "reason"), [(["one book " * 100], "there is only one"), (["a", "b", "c"], "none of the 3 was drawn")]
)
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_text_without_a_validation_document_is_an_error_that_names_the_command(
    tmp_path: Path, texts: list[str], reason: str, kind: str
) -> None:
    prepared(tmp_path / "text", made_up_texts(100), valid_share=0.3)
    model = str(random_gpt2(tmp_path / "model", tmp_path / "text"))
    data = tmp_path / f"book.{kind}"
    data.write_text(jsonl(texts) if kind == "jsonl" else "<|endoftext|>".join(texts))
    for _ in range(2):  # the second call must not take what the first one left for prepared
        with pytest.raises(ValueError, match=f"validation split is empty.*{reason}") as error:
            sweep(model, layers=[1], coders=["sae-topk"], ks=[4], data=str(data), out=tmp_path / "out", context=32)
        assert f"glassmoe data text {data} --tokenizer {model} --valid-share 0.1 --out FOLDER" in str(error.value)
    data.write_text(jsonl(made_up_texts(500)) if kind == "jsonl" else "<|endoftext|>".join(made_up_texts(500)))
    assert sweep(model, layers=[1], coders=["sae-topk"], ks=[4], data=str(data), out=tmp_path / "out", context=32)
