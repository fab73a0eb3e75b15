"""Streams of games: packings, folders, standard input, breaks, junk, and where chunks are cut."""

import gzip
import io
import json
import sys
from types import SimpleNamespace

import pytest

from game_files import PACK, as_pgn, pgn, prepare, prepare_text, read, synthetic
from glassmoe.chess.game_files import GameFile
from glassmoe.chess.pgn import prepare_chess
from glassmoe.data import sources
from glassmoe.text.documents import TextFile, documents
from glassmoe.text.documents import prepare_text as prepare_documents


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


ENCODINGS = ["utf-8-sig", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
IN_TEXT = "caf\u00e9 \u6771\u4eac \U0001f642, and a word"


def read_documents(file):
    source = TextFile(str(file), 0, lambda _: None)
    return [document for chunk in source.chunks() for document in documents(chunk, "text")]


def marked(text, encoding):
    return text.encode(encoding) if encoding == "utf-8-sig" else ("\ufeff" + text).encode(encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("kind", [".pgn", "lines.txt", ".jsonl", ".txt"])
def test_marked_encodings(tmp_path, monkeypatch, encoding, packing, kind):
    monkeypatch.setattr(sources, "_READ_BYTES", 5)
    file = tmp_path / f"input{kind}{packing}"
    texts = [IN_TEXT, "two\nlines"]
    content = {
        ".pgn": '[Event "caf\u00e9"]\r\n\r\n1. e4 {\u6771} e5 *\r\n',
        "lines.txt": ";1.e4 e5\r\n;1.e4 e5\r\n",
        ".jsonl": "\r\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts),
        ".txt": "<|endoftext|>".join(texts).replace("\n", "\r\n"),
    }[kind]
    file.write_bytes(PACK[packing](marked(content, encoding)))
    if kind in (".pgn", "lines.txt"):
        assert prepare(tmp_path, file)[0] == [";1.e4 e5"]
        return
    assert [document.text for document in read_documents(file)] == texts


@pytest.mark.parametrize("encoding", ENCODINGS[1:])
@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("kind", [".pgn", ".jsonl", ".txt"])
@pytest.mark.parametrize("language", ["English", "Chinese"])
def test_nuls_of_unmarked_encodings_are_refused(tmp_path, encoding, packing, kind, language):
    file = tmp_path / f"my input{kind}{packing}"
    words = (
        'some words "x" of English\n' if language == "English" else "\u6771\u4eac\u7684\u5929\u6c23\u5f88\u597d\u3002\n"
    )
    file.write_bytes(PACK[packing]((words * 30).encode(encoding)))
    source = (GameFile if kind == ".pgn" else TextFile)(str(file), 0, lambda _: None)
    name = encoding.replace("-le", "LE").replace("-be", "BE").upper()
    with pytest.raises(
        ValueError, match=f"looks like {name} without a byte order mark.*iconv -f {name} -t UTF-8"
    ) as error:
        list(source.chunks())
    assert ("-dc" in str(error.value)) == bool(packing) and "\n" not in str(error.value)


LETTERS = {
    "Chinese": "\u6771\u4eac\u7684\u5929\u6c23\u5f88\u597d\u3002\u6211\u5011\u53bb\u516c\u5712",
    "Russian": "\u043f\u0440\u0438\u0432\u0435\u0442\u043c\u0438\u0440",
    "Greek": "\u03ba\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1",
    "Japanese": "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c\u30ab\u30bf\u30ab\u30ca",
    "Hebrew": "\u05e9\u05dc\u05d5\u05dd\u05e2\u05d5\u05dc\u05dd",
    "Korean": "\uc548\ub155\ud558\uc138\uc694",
}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("language", LETTERS)
def test_utf_16_without_ascii_is_refused(tmp_path, language, encoding):
    """Words without spaces have no NULs, and Cyrillic letters are control characters of UTF-8."""
    for times in (2, 40):
        (tmp_path / "t.txt").write_bytes((LETTERS[language] * times).encode(encoding))
        name = encoding.replace("-le", "LE").replace("-be", "BE").upper()
        with pytest.raises(ValueError, match=rf"t.txt looks like {name} without a byte order mark.*iconv -f {name}"):
            read_documents(tmp_path / "t.txt")


@pytest.mark.parametrize(
    ("language", "encoding"),
    [
        ("Russian", "cp1251"),
        ("Russian", "koi8-r"),
        ("Chinese", "big5"),
        ("Japanese", "shift_jis"),
        ("Korean", "euc-kr"),
    ],
)
def test_text_that_is_hardly_utf_8_is_refused(tmp_path, language, encoding):
    (tmp_path / "t.txt").write_bytes((LETTERS[language] * 9 + " and some words ").encode(encoding) * 3)
    with pytest.raises(ValueError, match=r"t.txt is not UTF-8: \d+% of its beginning cannot be read so.*-f ENCODING"):
        read_documents(tmp_path / "t.txt")


def test_a_few_other_bytes_are_read_and_counted(tmp_path):
    text = "Il a \xe9t\xe9 d\xe9j\xe0 l\xe0, dit-elle, et le gar\xe7on ne r\xe9pondit pas tout de suite."
    (tmp_path / "t.txt").write_bytes(text.encode("latin-1") * 5)
    (document,) = read_documents(tmp_path / "t.txt")
    assert document.repaired
    (tmp_path / "t.txt").write_text(LETTERS["Chinese"] * 2000 + "\ufffd" * 3000)  # what UTF-8 itself spells is text
    (document,) = read_documents(tmp_path / "t.txt")
    assert not document.repaired
    (tmp_path / "g.pgn").write_bytes('[White "\u041a\u0430\u0440\u043f\u043e\u0432"]\n\n1. e4 e5 *\n'.encode("cp1251"))
    assert prepare(tmp_path, tmp_path / "g.pgn")[0] == [";1.e4 e5"]


@pytest.mark.parametrize("content", [bytes(1000), bytes(range(2)) * 3 + bytes(990), b"\x00\x00\x01" * 400])
def test_zeros_are_refused_and_leave_no_corpus(tmp_path, content):
    (tmp_path / "games.pgn").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"games.pgn has many NUL bytes; expected text in UTF-8: convert it with iconv"
    ):
        prepare(tmp_path, tmp_path / "games.pgn")
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"text.txt has many NUL bytes"):
        prepare_documents(tmp_path / "text.txt", tmp_path / "out", tokenizer="train:300", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["a\0b", "a text with a NUL\0 and another\0 in it " * 3, "\0"])
def test_few_nuls_are_text(tmp_path, content):
    (tmp_path / "t.txt").write_text(content)
    assert [document.text for document in read_documents(tmp_path / "t.txt")] == [content]


def test_what_breaks_utf_16_is_reported(tmp_path):
    texts = synthetic(40)
    (tmp_path / "cut.txt").write_bytes(marked("\n".join(texts) + "\n", "utf-16-le") + b"x")
    read_games, manifest = prepare(tmp_path, tmp_path / "cut.txt")
    assert read_games == list(dict.fromkeys(texts))
    example = manifest["skipped"]["unreadable stream"]["examples"][0]
    assert example["detail"] == "is not UTF-16LE as its mark says: truncated data"
    (tmp_path / "half.txt").write_bytes(
        b"\xff\xfe" + "half ".encode("utf-16-le") + b"\x3d\xd8" + "!".encode("utf-16-le")
    )
    (document,) = read_documents(tmp_path / "half.txt")
    assert document.repaired and document.text.startswith("half \ufffd") and document.text.endswith("!")
