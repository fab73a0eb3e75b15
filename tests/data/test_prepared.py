"""The result of a preparation: a table for people, values for programs, and a path for the next verb."""

from pathlib import Path

from glassmoe.checksums import read_json
from glassmoe.chess.pgn import prepare_chess
from glassmoe.data.corpus import Corpus
from glassmoe.data.prepared import largest
from text_files import made_up_texts

LINES = ";1.e4 e5 2.Nf3\n;1.d4 xx\n;1.c4 c5\n;1.c4 c5\n"


def test_prepared_games(tmp_path: Path) -> None:
    file = tmp_path / "games.txt"
    file.write_text(LINES)
    prepared = prepare_chess(str(file), str(tmp_path / "c"), trust=True, workers=1, valid_share=0, progress=False)
    assert prepared.to_dict() == read_json(tmp_path / "c/manifest.json")
    assert (prepared.sequences, prepared.tokens) == ({"train": 2, "valid": 0}, {"train": 22, "valid": 0})
    assert prepared.duplicates == 1 and [group.reason for group in prepared.skipped] == ["not a move"]
    (example,) = prepared.skipped[0].examples
    assert (example.file, example.number, example.detail) == (str(file), 2, "xx")
    assert prepared.rows()[0] == {"split": "train", "games": 2, "characters": 22}
    assert str(prepared).splitlines() == [
        "| split | games | characters |",
        "| ----- | ----- | ---------- |",
        "| train | 2     | 22         |",
        "| valid | 0     | 0          |",
        "",
        "moves not checked (--trust); 1 duplicates left out",
        f"skipped 1: not a move (first: {file}, game 2: xx)",
        f"prepared games: {tmp_path / 'c'}",
    ]
    assert "<td>22</td>" in prepared._repr_html_()
    assert Corpus.open(prepared).fingerprint == Corpus.open(tmp_path / "c").fingerprint


def test_prepared_text(tmp_path: Path) -> None:
    from glassmoe.text.documents import prepare_text

    file = tmp_path / "t.txt"
    file.write_text("<|endoftext|>".join([*made_up_texts(1100)[-1100:], " "]))
    prepared = prepare_text(file, tmp_path / "c", tokenizer="train:300", workers=1, valid_share=0, progress=False)
    (train, valid) = prepared.rows()
    assert list(train) == ["split", "documents", "tokens", "bytes", "bytes a token"]
    assert train["bytes a token"] == train["bytes"] / train["tokens"] and valid["bytes a token"] is None
    table = prepared.table()
    assert f"{prepared.sequences['train']:,}" in table and f"tokenizer train:300: {prepared.kind.size} ids" in table
    assert "\n1 source: t 1,1" in table and table.endswith(f"prepared text: {tmp_path / 'c'}")


def test_the_largest_counts_are_named() -> None:
    assert largest({"a": 1, "b": 2000, "c": 3}, 2) == "b 2,000, c 3, and 1 more"
    assert largest({"a": 1}, 2) == "a 1"
