"""Streams of games: packings, folders, standard input, breaks, junk, and where chunks are cut."""

import gzip
import io
import sys
from types import SimpleNamespace

import pytest

from game_files import PACK, as_pgn, pgn, prepare, prepare_text, read, synthetic
from glassmoe.chess.game_files import GameFile
from glassmoe.chess.pgn import prepare_chess


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("kind", [".pgn", ".txt"])
def test_packings(tmp_path, packing, kind):
    texts = list(dict.fromkeys(synthetic(30)))
    content = as_pgn(texts) if kind == ".pgn" else "\n".join(texts)
    file = tmp_path / f"Games{kind.upper()}{packing}"
    file.write_bytes(PACK[packing](content.encode()))
    assert prepare(tmp_path, file)[0] == texts


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".zst"])
def test_several_compressed_streams_in_one_file(tmp_path, packing):
    file = tmp_path / f"games.pgn{packing}"
    parts = [PACK[packing](pgn(sans).encode()) for sans in ("e4 e5", "d4 d5", "c4 c5")]
    skippable = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc" if packing == ".zst" else b""
    file.write_bytes(skippable.join([b"", *parts]))
    texts, manifest = prepare(tmp_path, file)
    assert texts == [";1.e4 e5", ";1.d4 d5", ";1.c4 c5"] and manifest["skipped"] == {}


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("kind", ["pgn", "lines"])
def test_standard_input(tmp_path, monkeypatch, packing, kind):
    texts = list(dict.fromkeys(synthetic(5)))
    content = "\n " + as_pgn(texts) if kind == "pgn" else "\n".join(texts)
    stream = io.BytesIO(PACK[packing](content.encode()))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
    got, manifest = prepare(tmp_path, "-")
    assert got == texts and manifest["inputs"][0]["file"] == "-"
    assert manifest["inputs"][0]["bytes"] == len(stream.getvalue())


def test_folder(tmp_path):
    folder = tmp_path / "in"
    (folder / "b").mkdir(parents=True)
    (folder / "z.pgn").write_text(pgn("c4"))
    (folder / "b" / "a.txt.gz").write_bytes(gzip.compress(b";1.e4\n"))
    (folder / "a.pgn").write_text(pgn("d4"))
    (folder / "notes.md").write_text("1. f4")
    texts, manifest = prepare(tmp_path, folder)
    assert texts == [";1.d4", ";1.e4", ";1.c4"]
    assert manifest["ignored_files"] == 1
    assert [entry["file"].rsplit("/", 1)[1] for entry in manifest["inputs"]] == ["a.pgn", "a.txt.gz", "z.pgn"]
    (tmp_path / "empty").mkdir()
    for bad, message in (
        ("empty", "no .pgn"),
        ("missing.pgn", "no such file"),
        ("in/notes.md", "unknown kind"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(tmp_path, tmp_path / bad, name="other")
    with pytest.raises(ValueError, match="there is no input"):
        prepare_chess([], tmp_path / "other")


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("kind", [".pgn", ".txt"])
@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_broken_stream_keeps_the_games_before_the_break(tmp_path, packing, kind, damage):
    texts = list(dict.fromkeys(synthetic(1200, max_chars=60)))
    content = (as_pgn(texts) if kind == ".pgn" else "\n".join(texts)).encode()
    # Two streams, so that the first is whole whatever the block size of the format.
    half = content.rfind(b"[Event" if kind == ".pgn" else b";", 0, len(content) // 2)
    packed = PACK[packing](content[:half]), PACK[packing](content[half:])
    tail = packed[1][: len(packed[1]) * 2 // 3]
    file = tmp_path / f"games{kind}{packing}"
    file.write_bytes(packed[0] + (tail if damage == "cut" else b"\x00garbage" * 20))
    got, manifest = prepare(tmp_path, file, trust=True)
    assert 300 < len(got) < len(texts)
    assert got == texts[: len(got)]
    assert manifest["skipped"]["unreadable stream"]["count"] == 1
    example = manifest["skipped"]["unreadable stream"]["examples"][0]
    assert example["game"] == len(got) + 1 and "after" in example["detail"]
    assert manifest["inputs"][0]["sha256"] is not None


def test_not_a_compressed_file_at_all(tmp_path):
    file = tmp_path / "games.pgn.zst"
    file.write_bytes(b"this is no zstandard file")
    with pytest.raises(ValueError, match=r"no usable game.*1 unreadable stream"):
        prepare(tmp_path, file)
    assert not (tmp_path / "out").exists()


def test_over_long_junk_is_skipped_in_bounded_memory(tmp_path):
    junk = b"\x00\xff{" * 2_000_000
    texts, manifest = prepare_text(tmp_path, pgn("e4").encode() + junk + b"\n\n" + pgn("d4").encode(), trust=True)
    assert texts == [";1.d4"]
    assert manifest["skipped"]["too long"]["count"] == 1
    file = tmp_path / "lines.txt"
    file.write_bytes(b";1.e4\n;1." + b"e4 " * 2_000_000 + b"\n;1.d4\n")
    assert prepare(tmp_path, file, name="lines", trust=True)[0] == [";1.e4", ";1.d4"]
    games = synthetic(20, max_chars=60)
    texts, manifest = prepare_text(tmp_path, b"junk" * 700_000 + b"\n" + as_pgn(games).encode(), name="many")
    assert texts == list(games) and manifest["skipped"]["too long"]["count"] == 1


@pytest.mark.parametrize("content", ["headers", "no Event", "no headers", "lines"])
def test_chunks_cut_between_games_only(tmp_path, content):
    texts = synthetic(50, max_chars=100) * 120
    build = {
        "headers": lambda text: f'[Event "x"]\n[White "y"]\n\n{text[1:]} 1-0\n\n',
        "no Event": lambda text: f'[White "y"]\n\n[Black "z"]\n\n{text[1:]} 1-0\n\n',
        "no headers": lambda text: f"{text[1:]}\n\n",
        "lines": lambda text: text + "\n",
    }[content]
    file = tmp_path / ("g.txt" if content == "lines" else "g.pgn")
    file.write_text("".join(map(build, texts)))
    source = GameFile(str(file), 0, lambda _: None)
    chunks = list(source.chunks())
    got = [text for chunk in chunks for text in read(chunk.data, checked=False, kind=chunk.kind)[0]]
    assert len(chunks) > 1 and got == texts
    assert source.error is None and source.bytes == file.stat().st_size
