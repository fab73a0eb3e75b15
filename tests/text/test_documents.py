"""Documents to a corpus of text: tokenizers, kinds of files, what is bad in them, and rows."""

import bz2
import gzip
import hashlib
import io
import json
import random
import signal
import sys
import time
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import zstandard
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import forked
from glassmoe.cli import main as cli
from glassmoe.data.corpus import Corpus, Rows, Sequences
from glassmoe.data.domains import token_kind
from glassmoe.data.tokens import TEXT
from glassmoe.text import documents, words
from glassmoe.text import tokens as text_tokens
from glassmoe.text.documents import TextFile, prepare_text
from glassmoe.text.tokens import byte_lengths, cut_text, document_encoder, text_kind, train_tokenizer
from glassmoe.text.words import WordIds, cuts_at_words
from text_files import jsonl, made_up_texts, prepared


def texts_in(corpus: Corpus) -> list[str]:
    return [corpus.split(name).text(i) for name in ("train", "valid") for i in range(len(corpus.split(name)))]


def in_order(texts: list[str], valid_share: float) -> list[str]:
    """First occurrences, those of the training split first."""
    splits: dict[str, list[str]] = {"train": [], "valid": []}
    for text in dict.fromkeys(texts):
        number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
        splits["valid" if number < valid_share * 2**64 else "train"].append(text)
    return splits["train"] + splits["valid"]


# --- on disk ---


def test_text_comes_back_without_duplicates_and_split_by_hash(tmp_path: Path) -> None:
    texts = [*made_up_texts(60), *made_up_texts(20), "with <|endoftext|> in it", " space before\n", "\x00 control"]
    manifest = prepared(tmp_path / "c", texts, valid_share=0.3)
    corpus = Corpus.open(tmp_path / "c")
    assert corpus.manifest == manifest
    assert texts_in(corpus) == in_order(texts, 0.3)
    assert manifest["documents"] == {name: len(corpus.split(name)) for name in ("train", "valid")}
    assert manifest["documents"]["valid"] > 5 and manifest["duplicates"] == 20
    assert manifest["token_counts"] == {name: corpus.split(name).data.size for name in ("train", "valid")}
    for name in ("train", "valid"):
        split = corpus.split(name)
        assert manifest["bytes"][name] == sum(len(split.text(i).encode()) for i in range(len(split)))
        starts = split.offsets[:-1].astype(int)
        # The separator is there once a document, and nowhere else, also where a text spells it.
        assert np.flatnonzero(split.data == corpus.kind.start).tolist() == starts.tolist()
    assert (corpus.tokens, corpus.vocab_size, corpus.split("train").data.dtype) == ("text", 320, np.uint16)
    assert manifest["tokenizer"]["separator"] == "<|endoftext|>" and manifest["tokenizer"]["separator_id"] == 0
    assert manifest["schema_version"] == 1 and manifest["skipped"] == {} and manifest["not_utf8"] == 0
    for name, entry in manifest["files"].items():
        raw = (tmp_path / "c" / name).read_bytes()
        assert entry == {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    assert manifest["tokenizer"]["sha256"] == manifest["files"]["tokenizer.json"]["sha256"] == corpus.tokenizer_sha256
    names = {"train.bin", "valid.bin", "train.offsets.npy", "valid.offsets.npy", "tokenizer.json"}
    assert set(manifest["files"]) == names
    sources = {"train.sources.npy", "valid.sources.npy"}
    assert {path.name for path in (tmp_path / "c").iterdir()} == names | sources | {"manifest.json"}


def test_result_does_not_depend_on_workers_or_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = made_up_texts(300)
    one = prepared(tmp_path / "a", texts)
    with monkeypatch.context() as patch:
        patch.setattr(documents, "CHUNK_BYTES", 1000)
        two = prepared(tmp_path / "a", texts, workers=2, overwrite=True)
    assert one == two
    three = prepared(tmp_path / "a", texts, overwrite=True, seed=1, max_documents=100)
    assert three["documents"]["train"] + three["documents"]["valid"] == 100 == three["max_documents"]
    assert three["tokenizer"]["trained_on"]["documents"] == three["documents"]["train"]
    assert three["inputs"][0]["sha256"] is None  # it was read in part


def test_fingerprint_holds_the_tokenizer(tmp_path: Path) -> None:
    texts = made_up_texts(40)
    a, b = (prepared(tmp_path / name, texts, size) for name, size in (("a", "train:300"), ("b", "train:310")))
    opened = [Corpus.open(tmp_path / name) for name in "ab"]
    assert opened[0].fingerprint != opened[1].fingerprint
    assert a["bytes"] == b["bytes"] and a["token_counts"] != b["token_counts"]
    # A folder that was prepared gives its tokenizer to others.
    again = prepared(tmp_path / "again", texts, str(tmp_path / "a"))
    assert Corpus.open(tmp_path / "again").fingerprint == opened[0].fingerprint
    assert "trained_on" not in again["tokenizer"]
    with pytest.raises(ValueError, match=r"another tokenizer .*prepare it again"):
        opened[1].require("text", opened[0].tokenizer_sha256)
    assert opened[1].require("text", None).require("text", opened[1].tokenizer_sha256) is opened[1]
    with pytest.raises(ValueError, match=r"holds text, expected games as moves; .*data chess GAMES.pgn --tokens moves"):
        opened[0].require("moves")


def test_text_is_needed_where_there_are_games(noise_games: Path) -> None:
    with pytest.raises(ValueError, match=r"holds games as characters, expected text; .*data text FILES"):
        Corpus.open(noise_games).require("text")


def test_killed_preparation_is_refused_and_made_again(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(jsonl(made_up_texts(3000)))
    words = ["data", "text", "t.jsonl", "--tokenizer", "train:300", "--out", "c"]
    process = forked.start([*words, "--workers", "1"], cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "c/tokens.partial").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "c/tokens.partial").exists()
    with pytest.raises(ValueError, match=r"no finished preparation .*glassmoe data text FILES --tokenizer train:8192"):
        Corpus.open(tmp_path / "c", tokens="text")
    forked.run(words, cwd=tmp_path, check=True)
    assert len(Corpus.open(tmp_path / "c").split("train")) > 2900
    assert not list((tmp_path / "c").glob("*.partial"))


def test_a_finished_folder_is_not_replaced_without_overwrite(tmp_path: Path) -> None:
    prepared(tmp_path / "c", made_up_texts(20))
    with pytest.raises(ValueError, match=r"already holds a prepared corpus.*--overwrite"):
        prepared(tmp_path / "c", made_up_texts(30))
    prepared(tmp_path / "c", made_up_texts(30), overwrite=True)
    assert sum(Corpus.open(tmp_path / "c").manifest["documents"].values()) == 30


def test_changed_tokenizer_or_manifest_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    manifest = prepared(folder, made_up_texts(20))
    file = folder / "tokenizer.json"
    kept = file.read_bytes()
    file.write_bytes(kept + b"\n")
    with pytest.raises(ValueError, match=r"is not the tokenizer that .* was prepared with"):
        Corpus.open(folder)
    file.unlink()
    with pytest.raises(ValueError, match=r"is not the tokenizer that .* was prepared with"):
        Corpus.open(folder)
    file.write_bytes(kept)
    for broken in ({"documents": 3}, {"tokenizer": {}}, {"files": {}}):
        (folder / "manifest.json").write_text(json.dumps(manifest | broken))
        with pytest.raises(ValueError, match=r"not the manifest of prepared text; .*glassmoe data text"):
            Corpus.open(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(ValueError, match="schema version 99"):
        Corpus.open(folder)


# --- files ---


def test_every_kind_of_file_and_folder(tmp_path: Path) -> None:
    a, b, c, d = (made_up_texts(5, seed=seed) for seed in range(4))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "1.jsonl").write_text(jsonl(a))
    (folder / "2.jsonl.gz").write_bytes(gzip.compress(jsonl(b).replace("\n", "\r\n").encode()))
    (folder / "3.TXT").write_text("﻿a book\r\nof two lines\n\n")
    (folder / "4.txt.bz2").write_bytes(bz2.compress("\n<|endoftext|>\n".join(c).encode()))
    (folder / "5.jsonl.zst").write_bytes(zstandard.compress(jsonl(d).encode()))
    (folder / "notes.md").write_text("not for training")
    manifest = prepare_text(
        [folder], tmp_path / "c", tokenizer="train:300", workers=1, valid_share=0, progress=False
    ).manifest
    expected = [*a, *b, "a book\nof two lines", *(text.strip("\n") for text in c), *d]
    assert texts_in(Corpus.open(tmp_path / "c")) == list(dict.fromkeys(expected))
    assert manifest["ignored_files"] == 1 and len(manifest["inputs"]) == 5
    stored = (folder / "5.jsonl.zst").read_bytes()
    assert manifest["inputs"][4]["sha256"] == hashlib.sha256(stored).hexdigest()


def test_the_format_of_standard_input_is_read_from_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(tmp_path / "first", ["one", "two"])
    for given, expected in (
        (jsonl(["three", "four"]), ["three", "four"]),
        ("a text\nof lines\n", ["a text\nof lines"]),
    ):
        monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": io.BytesIO(given.encode())}))
        options = {"tokenizer": str(tmp_path / "first"), "workers": 1, "valid_share": 0, "progress": False}
        prepare_text(["-"], tmp_path / "c", overwrite=True, **options)
        assert texts_in(Corpus.open(tmp_path / "c")) == expected
    with pytest.raises(ValueError, match=r"standard input can be read only once"):
        prepare_text(["-"], tmp_path / "d", tokenizer="train:300", progress=False)


@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_where_a_stream_is_cut_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    texts = [text.strip("\n") for text in made_up_texts(30, longest=20)]
    whole = jsonl(texts) if kind == "jsonl" else "<|endoftext|>".join(texts)
    (tmp_path / f"t.{kind}").write_text(whole)
    for read_bytes, chunk_bytes in ((1, 1), (7, 40), (64, 500), (1 << 16, 1 << 19)):
        monkeypatch.setattr("glassmoe.data.sources._READ_BYTES", read_bytes)
        monkeypatch.setattr(documents, "CHUNK_BYTES", chunk_bytes)
        source = TextFile(str(tmp_path / f"t.{kind}"), 0, lambda _: None)
        found = [each.text for chunk in source.chunks() for each in documents.documents(chunk, "text")]
        assert found == texts, (read_bytes, chunk_bytes)


def test_bad_documents_are_counted_and_reported(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}',
        b"not json",
        b'{"text": ',
        b'["text"]',
        b'{"body": "x"}',
        b'{"text": 3}',
        b'{"text": null}',
        b'{"text": " \\n"}',
        b"",
        b"[" * 100_000,
        b'{"text": "half \\ud83d of a pair"}',
        b'{"text": "not \xff utf-8"}',
        b'{"text": "good, too"}',
    ]
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(lines))
    options = {"tokenizer": "train:300", "workers": 1, "valid_share": 0, "progress": False}
    manifest = prepare_text([tmp_path / "t.jsonl"], tmp_path / "c", **options).manifest
    counts = {reason: entry["count"] for reason, entry in manifest["skipped"].items()}
    assert counts == {"not JSON": 3, "no field 'text'": 2, "field 'text' is not text": 2, "empty": 1}
    assert manifest["skipped"]["not JSON"]["examples"][0] == {
        "file": str(tmp_path / "t.jsonl"),
        "document": 2,
        "detail": "'not json'",
    }
    assert manifest["not_utf8"] == 2
    assert texts_in(Corpus.open(tmp_path / "c")) == ["good", "half � of a pair", "not � utf-8", "good, too"]


def test_nothing_usable_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.jsonl").write_text('{"body": "x"}\n')
    command = ["data", "text", str(tmp_path / "t.jsonl"), "--tokenizer", "train:300", "--out", str(tmp_path / "c")]
    assert cli.main(command) == 2
    assert "no usable document" in (said := capsys.readouterr().err) and "no field 'text'" in said and "--field" in said
    assert not (tmp_path / "c").exists()
    assert cli.main([*command, "--field", "body", "--workers", "1"]) == 0
    shown = capsys.readouterr().out
    assert "bytes a token" in shown and "prepared text" in shown


def test_broken_stream_keeps_what_came_before(tmp_path: Path) -> None:
    texts = made_up_texts(200)
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(jsonl(texts).encode())[:-600])
    options = {"tokenizer": "train:300", "workers": 1, "valid_share": 0, "progress": False}
    manifest = prepare_text([tmp_path / "t.jsonl.gz"], tmp_path / "c", **options).manifest
    assert manifest["skipped"]["unreadable stream"]["count"] == 1
    found = texts_in(Corpus.open(tmp_path / "c"))
    assert found == texts[: len(found)] and 50 < len(found) < 200


def test_long_lines_are_skipped_and_long_texts_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 5000)
    monkeypatch.setattr("glassmoe.data.sources._READ_BYTES", 1000)
    (tmp_path / "t.jsonl").write_text(jsonl(["before", "long " * 3000, "after"]))
    (tmp_path / "t.txt").write_text("word " * 3000)
    options = {"tokenizer": "train:300", "workers": 1, "valid_share": 0, "progress": False}
    manifest = prepare_text([tmp_path / "t.jsonl", tmp_path / "t.txt"], tmp_path / "c", **options).manifest
    assert manifest["skipped"]["too long"]["count"] == 1
    found = texts_in(Corpus.open(tmp_path / "c"))
    assert found[:2] == ["before", "after"] and len(found) > 3 and all(len(text) <= 7000 for text in found)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "required: inputs, out, tokenizer"),
        (["t.jsonl", "--tokenizer", "train:8192"], "required: out"),
        (["t.jsonl", "--tokenizer", "train:256", "--out", "o"], "at least 257"),
        (["t.jsonl", "--tokenizer", "train:many", "--out", "o"], "such as train:8192"),
        (["t.jsonl", "--tokenizer", "./nowhere", "--out", "o"], "no such directory"),
        (["t.jsonl", "--tokenizer", "t.jsonl", "--out", "o"], "is a file"),
        (["t.jsonl", "--tokenizer", ".", "--out", "o"], "cannot load --tokenizer"),
        (["t.json", "--tokenizer", "train:300", "--out", "o"], "no such file"),
        (["t.csv", "--tokenizer", "train:300", "--out", "o"], "expected .jsonl and .txt and .parquet and .arrow"),
        (["t.jsonl", "--tokenizer", "train:300", "--out", "t.csv"], "is a file"),
    ],
)
def test_mistakes_get_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.jsonl").write_text(jsonl(["a text"]))
    Path("t.csv").write_text("a,b")
    assert cli.main(["data", "text", *words]) == 2
    shown = capsys.readouterr().err
    assert said in shown and "Traceback" not in shown
    assert not Path("o").exists()


def test_text_stands_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "--out", "o", "text", "f"]) == 2
    assert "needs one of chess, text" in capsys.readouterr().err


# --- tokenizers ---


def test_training_is_the_same_every_time_and_holds_every_byte() -> None:
    texts = made_up_texts(100)
    first, second = (train_tokenizer(iter(texts), 400) for _ in range(2))
    assert first == second
    kind = text_kind(first)
    assert (kind.size, kind.start, kind.vocabulary[0], kind.prompt) == (400, 0, "<|endoftext|>", "")
    every = bytes(range(256)).decode("latin-1") + "東京🙂"
    assert kind.decode(kind.encode(every)) == every
    assert kind.encode("").tolist() == [0]
    small = train_tokenizer(["aa"], 4000)
    assert text_kind(small).size < 300


def test_the_sample_is_bounded_and_of_the_training_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = made_up_texts(400, longest=20)
    monkeypatch.setattr(documents, "SAMPLE_BYTES", 4000)
    manifest = prepared(tmp_path / "a", texts, valid_share=0.4)
    trained = manifest["tokenizer"]["trained_on"]
    assert 1500 < trained["bytes"] <= 4000 and 10 < trained["documents"] < 200 and trained["seed"] == 0
    monkeypatch.setattr(documents, "SAMPLE_BYTES", 10**9)
    everything = prepared(tmp_path / "b", texts, valid_share=0.4)
    assert everything["tokenizer"]["trained_on"]["documents"] == everything["documents"]["train"]
    assert everything["tokenizer"]["trained_on"]["bytes"] == everything["bytes"]["train"]
    # Another order gives the same sample of them.
    sources = [TextFile(str(tmp_path / f"{name}.jsonl"), 0, lambda _: None) for name in "ab"]
    Path(sources[1].name).write_text(jsonl(texts[::-1]))
    monkeypatch.setattr(documents, "SAMPLE_BYTES", 4000)
    one, two = (documents._sample([source], "text", 0.4, None, 0) for source in sources)
    assert one == two[::-1]
    assert documents._sample(sources[:1], "text", 0.4, None, 1) != one


def test_a_transformers_tokenizer_from_a_directory(tmp_path: Path) -> None:
    own = Tokenizer(models.WordLevel({"<s>": 0, "<pad>": 1, "cat": 2, "dog": 3, "?": 4}, unk_token="?"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", unk_token="?").save_pretrained(tmp_path / "words")
    manifest = prepared(tmp_path / "c", ["cat dog", "dog"], str(tmp_path / "words"), valid_share=0)
    corpus = Corpus.open(tmp_path / "c")
    assert corpus.split("train").data.tolist() == [0, 2, 3, 0, 3]
    assert manifest["tokenizer"]["separator"] == "<s>" and corpus.vocab_size == 5
    assert byte_lengths(corpus.kind) is None
    PreTrainedTokenizerFast(tokenizer_object=own, unk_token="?").save_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match="lacks a bos or eos token"):
        prepared(tmp_path / "d", ["cat"], str(tmp_path / "none"))


def test_more_than_65536_ids_take_four_bytes(tmp_path: Path) -> None:
    words = {"<s>": 0, **{f"w{i}": i for i in range(1, 70_000)}}
    own = Tokenizer(models.WordLevel(words, unk_token="w1"))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<s>").save_pretrained(tmp_path / "words")
    manifest = prepared(tmp_path / "c", ["w3 w69999", "w5 w6 w7"], str(tmp_path / "words"), valid_share=0)
    assert manifest["packing"]["dtype"] == "uint32"
    tokens, lengths = Rows(Corpus.open(tmp_path / "c").split("train"), "documents:4").batch([0, 1])
    assert tokens.tolist() == [[0, 3, 69999, 0], [0, 5, 6, 7]] and lengths.tolist() == [3, 4]


def test_byte_lengths_of_byte_level_tokens(tmp_path: Path) -> None:
    texts = made_up_texts(60)
    prepared(tmp_path / "c", texts, valid_share=0)
    corpus = Corpus.open(tmp_path / "c")
    lengths, split = byte_lengths(corpus.kind), corpus.split("train")
    for i in range(len(split)):
        assert lengths[split.tokens(i)].sum() == len(split.text(i).encode())
    changed = json.loads(corpus.kind.tokenizer)
    changed["pre_tokenizer"]["add_prefix_space"] = True
    assert byte_lengths(corpus.kind._replace(tokenizer=json.dumps(changed))) is None


def test_long_texts_are_tokenised_in_pieces_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(made_up_texts(40))
    kind = text_kind(train_tokenizer([text], 400))
    whole = kind.encode(text)
    pieces = cut_text(text, 200)
    assert "".join(pieces) == text and len(pieces) > 10 and max(map(len, pieces)) <= 200
    monkeypatch.setattr(text_tokens, "cut_text", lambda given: cut_text(given, 200))
    assert kind.encode(text).tolist() == whole.tolist()
    assert cut_text("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]


def described(tokenizer: Tokenizer) -> dict:
    return json.loads(tokenizer.to_str())


NASTY = st.text(st.sampled_from(" \n\r\t\x0b\x1c\x85\xa0\u2003\u2028abS'tsé3.,!-/(\u0301東🙂<|>"), max_size=40)


def byte_level(pattern: str | None, normalizer: object = None, added: tuple[str, ...] = ()) -> Tokenizer:
    """A BPE with many merges within words, marks and white space: GPT-2's pattern, or the given one."""
    own = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    own.pre_tokenizer = pre_tokenizers.Sequence([*split, level]) if split else level
    if normalizer is not None:
        own.normalizer = normalizer
    rng = random.Random(0)
    words = ["ab", "a's", " ", "  ", "\n", "\n\n", " \n", "\t", "é", "e\u0301", "3", "33", ".", "!!", ".\n", "東"]
    texts = ["".join(rng.choice(words) for _ in range(30)) for _ in range(200)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    own.train_from_iterator(texts, trainer)
    own.add_tokens([AddedToken(each, normalized=False) for each in added])
    own.encode_special_tokens = True
    return own


@pytest.mark.parametrize(
    "own",
    [
        byte_level(None),
        byte_level(None, normalizers.NFC(), ("  ", "    ")),
        *(byte_level(pattern) for pattern in sorted(words.SPLITS)),
    ],
    ids=["gpt2", "neox", "qwen2", "llama3"],
)
def test_words_looked_up_give_the_tokens_of_the_whole_text(own: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuts_at_words(described(own))
    monkeypatch.setattr(words, "KNOWN_WORDS", 50)
    monkeypatch.setattr(words, "LONGEST_WORD", 6)
    monkeypatch.setattr(words, "_JOINED", 7)
    encode = document_encoder(own, 0, np.dtype("<u2"))

    @hypothesis.settings(max_examples=400, deadline=None, derandomize=True)
    @hypothesis.given(st.lists(NASTY, max_size=4))
    def equal(texts: list[str]) -> None:
        naive = [[0, *own.encode(text, add_special_tokens=False).ids] for text in texts]
        assert [each.tolist() for each in encode(texts)] == naive

    equal()
    texts = made_up_texts(200)
    assert len(set(encode(texts[:1])[0].tolist())) > 5
    for _ in range(2):  # the second time words are known
        assert [each.tolist() for each in encode(texts)] == [[0, *own.encode(text).ids] for text in texts]
    # Long texts are cut, and worked on in groups.
    monkeypatch.setattr(text_tokens, "PIECE_CHARACTERS", 300)
    monkeypatch.setattr(text_tokens, "cut_text", lambda given: cut_text(given, 40))
    texts += [text.replace(" ", ".\n") for text in texts]
    assert [each.tolist() for each in encode(texts)] == [[0, *own.encode(text).ids] for text in texts]
    encode(["ab"])[0][0] = 3  # an array that may be written to, as torch asks


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()], ids=["none", "nfc"])
def test_words_tokenised_as_one_text_have_the_ids_that_each_has_alone(normalizer: object) -> None:
    own = byte_level(None, normalizer)
    ids_of = WordIds(own, np.dtype("<u2"), described(own))

    @hypothesis.settings(max_examples=400, deadline=None, derandomize=True)
    @hypothesis.given(st.lists(NASTY.filter(bool), max_size=12, unique=True))
    def equal(asked: list[str]) -> None:
        answers = {word: np.frombuffer(raw, "<u2").tolist() for word, raw in ids_of._ask(asked)}
        assert answers == {word: own.encode(word, add_special_tokens=False).ids for word in asked}

    equal()


def test_a_tokenizer_that_lacks_bytes_answers_words_one_by_one() -> None:
    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.train_from_iterator(["ab abc\nab"] * 9, trainers.BpeTrainer(vocab_size=40, show_progress=False))
    assert cuts_at_words(described(own))
    texts = ["ab xab abcx\nab", "x", "abc  ab\n\nx ab"]
    encode = document_encoder(own, 0, np.dtype("<u2"))
    assert [each.tolist() for each in encode(texts)] == [[0, *own.encode(text).ids] for text in texts]


def test_words_are_looked_up_only_where_that_is_known_to_be_exact() -> None:
    prefix = byte_level(None)
    prefix.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    spaces = Tokenizer(models.BPE())
    spaces.pre_tokenizer = pre_tokenizers.Metaspace()
    lower = byte_level(None, normalizers.Lowercase())
    across = byte_level(None, None, ("a b",))
    marks = byte_level(None, None, ("ab-ab",))
    pairs = byte_level(r"\S+ \S+|\s|\S+")
    for own in (prefix, spaces, lower, across, marks, pairs):
        assert not cuts_at_words(described(own))
    encode = document_encoder(pairs, 0, np.dtype("<u2"))
    texts = made_up_texts(5)
    assert [each.tolist() for each in encode(texts)] == [[0, *pairs.encode(text).ids] for text in texts]


def test_the_tokens_of_text_are_not_decided_by_the_name() -> None:
    with pytest.raises(ValueError, match="that of a tokenizer"):
        token_kind(TEXT)
    with pytest.raises(ValueError, match="no token '<s>'"):
        text_kind(train_tokenizer(["a"], 257), "<s>")
    with pytest.raises(ValueError, match="not a tokenizer"):
        text_kind("{}")


# --- rows ---


def test_packed_rows_of_text_against_a_naive_loop(tmp_path: Path) -> None:
    prepared(tmp_path / "c", made_up_texts(50), valid_share=0)
    split = Corpus.open(tmp_path / "c").split("train")
    stream = [token for i in range(len(split)) for token in split.tokens(i).tolist()]
    for length in (2, 7, 64):
        rows = Rows(split, f"packed:{length}")
        expected = [stream[i : i + length] for i in range(0, len(stream) - length + 1, length)]
        tokens, lengths = rows.batch(np.arange(len(rows)))
        assert tokens.tolist() == expected and tokens.dtype == np.uint16
        assert lengths.tolist() == [length] * len(expected) and rows.length == length
        assert rows.batch([1, 0, 1])[0].tolist() == [expected[1], expected[0], expected[1]]
    with pytest.raises(IndexError):
        rows.batch([len(rows)])


def test_document_rows_against_a_naive_loop(tmp_path: Path) -> None:
    prepared(tmp_path / "c", made_up_texts(50), valid_share=0)
    split = Corpus.open(tmp_path / "c").split("train")
    rows = Rows(split, "documents:40")
    tokens, lengths = rows.batch(np.arange(len(rows)))
    for i in range(len(split)):
        expected = split.tokens(i)[:40].tolist()
        assert tokens[i].tolist() == expected + [0] * (40 - len(expected)) and lengths[i] == len(expected)


def test_cuts_of_the_other_world_are_refused(tmp_path: Path, noise_games: Path) -> None:
    prepared(tmp_path / "c", made_up_texts(5), valid_share=0)
    split = Corpus.open(tmp_path / "c").split("train")
    with pytest.raises(ValueError, match=r"'documents:N' .*got 'games:8'"):
        Rows(split, "games:8")
    with pytest.raises(ValueError, match=r"'games:N' .*got 'documents:8'"):
        Rows(Corpus.open(noise_games).split("train"), "documents:8")
    with pytest.raises(ValueError, match=r"no row at all from 5 documents"):
        Rows(split, "packed:100000")
    few = Sequences(np.zeros(0, np.uint16), np.zeros(1, np.uint64), split.kind)
    with pytest.raises(ValueError, match="no row at all"):
        Rows(few, "packed:8")
