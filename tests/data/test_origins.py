"""Where documents came from: read, numbered, kept in step with the documents of each split, and found again in rows."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from glassmoe.chess.tokens import CHARACTERS
from glassmoe.cli import main as cli
from glassmoe.data import origins
from glassmoe.data.corpus import Corpus, Rows, Sequences
from glassmoe.data.origins import LONGEST_NAME, SourceNumbers, source_in, stem
from glassmoe.text import documents
from glassmoe.text.documents import prepare_text
from text_files import jsonl, made_up_texts, prepared

OPTIONS = {"tokenizer": "train:300", "workers": 1, "valid_share": 0.3, "progress": False}


def lines(file: Path, objects: list[dict]) -> Path:
    file.write_text("".join(json.dumps(each) + "\n" for each in objects))
    return file


def sourced(texts: list[str], names: str = "abc") -> list[dict]:
    return [{"text": text, "source": names[number % len(names)]} for number, text in enumerate(texts)]


def kept(corpus: Corpus) -> dict[str, str]:
    """Text -> the name of its source, of both splits."""
    found = {}
    for name in ("train", "valid"):
        split = corpus.split(name)
        assert split.sources.dtype == np.uint16 and split.sources.shape == (len(split),)
        found |= {split.text(i): split.source_names[split.sources[i]] for i in range(len(split))}
    return found


# --- names ---


@pytest.mark.parametrize(
    ("values", "field", "expected"),
    [
        ({"source": " web\n"}, "source", "web"),
        ({"source": 7}, "source", "7"),
        ({"source": True}, "source", "true"),
        ({"meta": {"source": {"name": "a.b"}}}, "meta.source.name", "a.b"),
        ({"meta.source": "whole", "meta": {"source": "nested"}}, "meta.source", "whole"),
        ({"source": "\ud83d"}, "source", "?"),
        ({"source": "x" * LONGEST_NAME}, "source", "x" * LONGEST_NAME),
        ({"source": "x" * (LONGEST_NAME + 1)}, "source", None),
        ({"source": 10**400}, "source", None),
        ({"source": 0.5}, "source", None),
        ({"source": None}, "source", None),
        ({"source": ["web"]}, "source", None),
        ({"source": {"name": "web"}}, "source", None),
        ({"source": " "}, "source", None),
        ({"meta": "web"}, "meta.source", None),
        ({}, "source", None),
    ],
)
def test_what_is_a_name(values: dict, field: str, expected: str | None) -> None:
    assert source_in(values, field) == expected


def test_stems() -> None:
    assert [stem(file) for file in ("in/web.jsonl.zst", "a.b.TXT", "books", "-")] == [
        "web",
        "a.b",
        "books",
        "standard input",
    ]


def test_more_names_than_fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """65,535 of them do, so that the greatest number is 65,534."""
    numbers = SourceNumbers("id")
    assert numbers.numbers([str(i) for i in range(65_535)])[-1] == 65_534
    with pytest.raises(ValueError, match=r"--source-field id has more than 65,535 different values, .*'more'"):
        numbers.numbers(["more"])
    monkeypatch.setattr(origins, "MOST_NAMES", 2)
    unasked = SourceNumbers()
    assert unasked.numbers(["b", "a", "b"]).tolist() == [0, 1, 0] and unasked.names == ["b", "a"]
    assert unasked.numbers(["c"]).size == 0 and not unasked.kept and unasked.numbers(["a"]).size == 0
    assert "they are not kept" in capsys.readouterr().err


# --- preparation ---


def test_sources_stay_with_their_documents(tmp_path: Path) -> None:
    """Duplicates are dropped with their sources, and each split has those of its documents."""
    texts = made_up_texts(60)
    file = lines(tmp_path / "t.jsonl", [*sourced(texts), *sourced(texts[1:20])])
    manifest = prepare_text([file], tmp_path / "c", **OPTIONS).manifest
    corpus = Corpus.open(tmp_path / "c")
    assert kept(corpus) == {each["text"]: each["source"] for each in sourced(texts)}
    assert corpus.source_names == ("a", "b", "c") and manifest["duplicates"] == 19
    assert [sum(each) for each in zip(*manifest["sources"]["documents"].values(), strict=True)] == [20, 20, 20]
    assert manifest["documents"]["valid"] == sum(manifest["sources"]["documents"]["valid"]) > 5


def test_the_same_tokens_are_the_same_data(tmp_path: Path) -> None:
    texts = made_up_texts(40)
    prepare_text([lines(tmp_path / "a.jsonl", sourced(texts))], tmp_path / "a", **OPTIONS)
    prepared(tmp_path / "b", texts, "train:300", valid_share=0.3)
    a, b = (Corpus.open(tmp_path / name) for name in "ab")
    assert a.fingerprint == b.fingerprint and a.source_names == ("a", "b", "c") and b.source_names == ("b",)


def test_sources_do_not_depend_on_workers_or_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = lines(tmp_path / "t.jsonl", sourced(made_up_texts(200, longest=30), "abcdefg"))
    one = prepare_text([file], tmp_path / "c", **OPTIONS, max_documents=150).manifest
    monkeypatch.setattr(documents, "CHUNK_BYTES", 1000)
    two = prepare_text([file], tmp_path / "c", **OPTIONS | {"workers": 2}, max_documents=150, overwrite=True).manifest
    assert one == two and len(kept(Corpus.open(tmp_path / "c"))) == 150


def test_files_name_what_names_no_source(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    lines(folder / "web.jsonl", [{"text": "one", "source": "news"}, {"text": "two"}, {"text": "three", "source": [1]}])
    (folder / "book.txt").write_text("four<|endoftext|>five")
    prepare_text([folder], tmp_path / "c", **OPTIONS)
    assert kept(Corpus.open(tmp_path / "c")) == {
        "one": "news",
        "two": "web",
        "three": "web",
        "four": "book",
        "five": "book",
    }


def test_a_requested_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objects = [{"text": "one", "source": "x", "meta": {"year": 1999}}, {"text": "two", "source": "x"}]
    file = lines(tmp_path / "t.jsonl", [*objects, {"text": "three", "meta": {"year": None}}])
    command = ["data", "text", str(file), "--tokenizer", "train:300", "--out", str(tmp_path / "c"), "--workers", "1"]
    assert cli.main([*command, "--source-field", "meta.year", "--valid-share", "0"]) == 0
    assert "2 sources: no source 2, 1999 1" in capsys.readouterr().out
    assert kept(Corpus.open(tmp_path / "c")) == {"one": "1999", "two": "no source", "three": "no source"}
    assert cli.main([*command, "--source-field", "meta.yaer", "--overwrite"]) == 2
    assert "--source-field meta.yaer: no document names its source there" in capsys.readouterr().err
    # What was prepared before is still there.
    assert Corpus.open(tmp_path / "c").source_names == ("1999", "no source")


def test_too_many_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(origins, "MOST_NAMES", 2)
    file = lines(tmp_path / "t.jsonl", sourced(made_up_texts(9)))
    with pytest.raises(ValueError, match="has more than 2 different values"):
        prepare_text([file], tmp_path / "c", **OPTIONS, source_field="source")
    assert not (tmp_path / "c").exists()
    manifest = prepare_text([file], tmp_path / "c", **OPTIONS).manifest
    split = Corpus.open(tmp_path / "c").split("train")
    assert "sources" not in manifest and split.sources is None and split.source_names == ()
    assert not list((tmp_path / "c").glob("*sources*")) and "not kept" in capsys.readouterr().err


def test_many_sources_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = lines(tmp_path / "t.jsonl", [{"text": f"text {i}", "source": f"s{i}"} for i in range(1001)])
    command = ["data", "text", str(file), "--tokenizer", "train:300", "--out", str(tmp_path / "c"), "--workers", "1"]
    assert cli.main(command) == 0
    assert re.search(
        r"1,001 sources: s0 1, .*and 996 more; sources that many .*--source-field", capsys.readouterr().out
    )


def test_parquet_with_nested_sources(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = made_up_texts(4)
    columns = {
        "text": texts,
        "source": list("abab"),
        "meta": [{"name": n, "raw": b"\x00"} for n in ("x", "y", "x", None)],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    for field, expected in ((None, "abab"), ("meta.name", ["x", "y", "x", "no source"])):
        prepare_text([tmp_path / "t.parquet"], tmp_path / "c", **OPTIONS, source_field=field, overwrite=True)
        assert kept(Corpus.open(tmp_path / "c")) == dict(zip(texts, expected, strict=True))
    with pytest.raises(ValueError, match="no document names its source there"):
        prepare_text([tmp_path / "t.parquet"], tmp_path / "c", **OPTIONS, source_field="meta.raw", overwrite=True)


# --- folders of before, and damaged ones ---


def test_folders_of_before_have_no_sources(tmp_path: Path) -> None:
    manifest = prepared(tmp_path / "c", made_up_texts(20))
    fingerprint = Corpus.open(tmp_path / "c").fingerprint
    del manifest["sources"]
    (tmp_path / "c/manifest.json").write_text(json.dumps(manifest))
    for file in (tmp_path / "c").glob("*.sources.npy"):
        file.unlink()
    corpus = Corpus.open(tmp_path / "c")
    assert corpus.split("train").sources is None and corpus.source_names == () and corpus.fingerprint == fingerprint


def test_changed_sources_are_refused(tmp_path: Path) -> None:
    manifest = prepared(tmp_path / "c", made_up_texts(20))
    file = tmp_path / "c/train.sources.npy"
    raw = file.read_bytes()
    for changed in (raw[:-1] + b"\x01", b"", None):
        if changed is None:
            file.unlink()
        else:
            file.write_bytes(changed)
        with pytest.raises(
            ValueError, match=r"train.sources.npy differs from the file in the manifest; prepare .* again"
        ):
            Corpus.open(tmp_path / "c")
    file.write_bytes(raw)
    for broken in ({}, [], {"names": [3]}, {"names": ["a"], "files": {}}):
        (tmp_path / "c/manifest.json").write_text(json.dumps(manifest | {"sources": broken}))
        with pytest.raises(ValueError, match="not the manifest of prepared text"):
            Corpus.open(tmp_path / "c")


def test_games_have_no_sources(noise_games: Path) -> None:
    split = Corpus.open(noise_games).split("train")
    assert split.sources is None and split.source_names == ()


# --- rows ---


@pytest.mark.parametrize("cut", ["packed:7", "packed:64", "documents:5", "documents:300"])
def test_the_documents_of_rows_against_a_loop(tmp_path: Path, cut: str) -> None:
    file = lines(tmp_path / "t.jsonl", sourced(made_up_texts(30, longest=20)))
    prepare_text([file], tmp_path / "c", **OPTIONS)
    split = Corpus.open(tmp_path / "c").split("train")
    rows = Rows(split, cut)
    indices = np.arange(len(rows))[::-1]
    found, (tokens, lengths) = rows.documents(indices), rows.batch(indices)
    documents_T = [document for document in range(len(split)) for _ in split.tokens(document)]
    for row, line, ids, length in zip(indices, found, tokens, lengths, strict=True):
        start = row * rows.length if cut.startswith("packed") else int(split.offsets[row])
        expected = documents_T[start : start + length]
        assert line.tolist() == expected + [-1] * (rows.length - length)
        # A separator is where the next document begins.
        begins = np.flatnonzero(np.diff(line[:length]) > 0) + 1
        assert set(begins) == set(np.flatnonzero(ids[:length] == split.kind.start)) - {0}


def test_the_games_of_packed_rows() -> None:
    """Three games of 3 tokens in rows of 4: the second of a row is cut, and the next row begins with the one after."""
    games = Sequences(np.full(9, 15, np.uint8), np.array([0, 3, 6, 9], np.uint64), CHARACTERS)
    assert Rows(games, "packed:4").documents([0]).tolist() == [[0, 0, 0, 1]]


def test_standard_input_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    prepared(tmp_path / "first", ["one", "two"])
    given = jsonl(["three", "four"]).encode()
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": io.BytesIO(given)}))
    prepare_text(["-"], tmp_path / "c", **OPTIONS | {"tokenizer": str(tmp_path / "first")})
    assert Corpus.open(tmp_path / "c").source_names == ("standard input",)
