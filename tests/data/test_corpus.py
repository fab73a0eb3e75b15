"""Prepared folders, rows cut from games, and the stateless sampler."""

import hashlib
import json
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from glassmoe.chess.characters import decode, encode
from glassmoe.chess.tokens import CHARACTERS, pack_games
from glassmoe.data.corpus import Corpus, Rows, Sequences, row_indices
from glassmoe.data.writer import CorpusWriter, PackedSequences


def made_up_games(count, seed=0, longest=60):
    rng = np.random.default_rng(seed)
    letters = b"abcdefgh12345678 x+"
    games = []
    for length in rng.integers(0, longest, count):
        games.append(b";" + bytes(rng.choice(list(letters), length).astype(np.uint8)))
    return games


def write(folder, texts, chunk=7, **options):
    with CorpusWriter(folder, CHARACTERS, **options) as writer:
        for begin in range(0, len(texts), chunk):
            writer.add(pack_games(texts[begin : begin + chunk]))
        return writer.finish({"checked": False, "synthetic": True}).manifest


def split_by_hand(texts, valid_share):
    """First occurrences in order, told apart by the hash of each text."""
    splits = {"train": [], "valid": []}
    for text in dict.fromkeys(texts):
        number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
        splits["valid" if number < valid_share * 2**64 else "train"].append(text.decode())
    return splits


def games_of(texts):
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.uint64)
    return Sequences(encode(b"".join(texts)), offsets, CHARACTERS)


# --- on disk ---


def test_written_games_come_back_in_order_without_duplicates(tmp_path):
    texts = made_up_games(300) * 2 + made_up_games(100, seed=1)
    manifest = write(tmp_path / "c", texts, valid_share=0.3)
    corpus = Corpus.open(tmp_path / "c")
    assert corpus.manifest == manifest
    for split, expected in split_by_hand(texts, 0.3).items():
        games = corpus.split(split)
        assert [games.text(i) for i in range(len(games))] == expected
        assert manifest["games"][split] == len(expected) > 50
        assert manifest["characters"][split] == sum(map(len, expected))
    assert manifest["duplicates"] == len(texts) - len(set(texts)) >= 300
    names = {"train.bin", "valid.bin", "train.offsets.npy", "valid.offsets.npy"}
    assert {path.name for path in (tmp_path / "c").iterdir()} == names | {"manifest.json"}
    for name in names:
        raw = (tmp_path / "c" / name).read_bytes()
        assert manifest["files"][name] == {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}


def test_result_does_not_depend_on_the_chunks(tmp_path):
    texts = made_up_games(500)
    assert write(tmp_path / "a", texts, chunk=1) == write(tmp_path / "b", texts, chunk=499)


def test_split_of_a_game_does_not_depend_on_the_others(tmp_path):
    texts = made_up_games(400)
    write(tmp_path / "all", texts, valid_share=0.5)
    write(tmp_path / "half", texts[::-2], valid_share=0.5)
    everything = split_by_hand(texts, 0.5)
    half = Corpus.open(tmp_path / "half")
    for split in ("train", "valid"):
        games = half.split(split)
        assert {games.text(i) for i in range(len(games))} <= set(everything[split])


def test_fingerprint_names_the_content(tmp_path):
    texts = made_up_games(50)
    write(tmp_path / "a", texts)
    write(tmp_path / "b", texts)
    write(tmp_path / "c", texts[1:])
    a, b, c = (Corpus.open(tmp_path / name).fingerprint for name in "abc")
    assert a == b != c
    assert len(a) == 64


def test_a_finished_folder_is_not_replaced_without_overwrite(tmp_path):
    write(tmp_path / "c", made_up_games(20))
    before = Corpus.open(tmp_path / "c").fingerprint
    with pytest.raises(ValueError, match=r"already holds a prepared corpus.*--overwrite"):
        write(tmp_path / "c", made_up_games(30, seed=5))
    with pytest.raises(ValueError, match="no games"):
        write(tmp_path / "c", [], overwrite=True)
    assert Corpus.open(tmp_path / "c").fingerprint == before
    write(tmp_path / "c", made_up_games(30, seed=5), overwrite=True)
    assert Corpus.open(tmp_path / "c").fingerprint != before


def test_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyError), CorpusWriter(tmp_path / "c", CHARACTERS) as writer:
        writer.add(pack_games([b";1.e4"]))
        raise KeyError
    assert not (tmp_path / "c").exists()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "tokens.partial").write_bytes(b"of a killed preparation")
    (tmp_path / "d" / "notes.md").write_text("mine")
    write(tmp_path / "d", made_up_games(5))
    assert (tmp_path / "d" / "notes.md").read_text() == "mine"
    assert not list((tmp_path / "d").glob("*.partial"))


def test_writer_refuses_bad_arguments(tmp_path):
    for share in (-0.1, 1.0, 2):
        with pytest.raises(ValueError, match="valid_share"):
            CorpusWriter(tmp_path / "c", CHARACTERS, valid_share=share)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        CorpusWriter(tmp_path / "file", CHARACTERS)


def test_opening_a_missing_corpus_names_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"glassmoe data chess GAMES.pgn --out .*nowhere"):
        Corpus.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no finished preparation"):
        Corpus.open(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="not the manifest"):
        Corpus.open(tmp_path)


def test_opening_another_version_or_damaged_files(tmp_path):
    folder = tmp_path / "c"
    write(folder, made_up_games(50), valid_share=0.5)
    with pytest.raises(ValueError, match="'test'"):
        Corpus.open(folder).split("test")
    data = (folder / "train.bin").read_bytes()
    (folder / "train.bin").write_bytes(data[:-1])
    with pytest.raises(ValueError, match="do not match"):
        Corpus.open(folder)
    (folder / "train.bin").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(ValueError, match="schema version 99"):
        Corpus.open(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "valid.offsets.npy").unlink()
    with pytest.raises(ValueError, match="cannot read split valid"):
        Corpus.open(folder)


def test_corpus_without_valid_games_opens(tmp_path):
    write(tmp_path / "c", [b";1.e4"], valid_share=0)
    corpus = Corpus.open(tmp_path / "c")
    assert len(corpus.split("valid")) == 0 and len(corpus.split("train")) == 1
    assert corpus.split("train").text(-1) == ";1.e4"
    with pytest.raises(IndexError):
        corpus.split("train").tokens(1)
    with pytest.raises(ValueError, match="no row at all"):
        Rows(corpus.split("valid"), "games:8")


def test_memory_is_at_most_32_bytes_a_game(tmp_path):
    games = 400_000
    part = games // 10
    hashes = np.random.default_rng(0).permutation(games).astype(np.uint64) // np.uint64(2)
    tokens = np.full(2 * part, 15, np.uint8)
    chunks = [
        PackedSequences(tokens, np.full(part, 2, np.uint32), hashes[begin : begin + part])
        for begin in range(0, games, part)
    ]
    with CorpusWriter(tmp_path / "c", CHARACTERS) as writer:
        tracemalloc.start()
        for chunk in chunks:
            writer.add(chunk)
        manifest = writer.finish({}).manifest
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert manifest["duplicates"] == games // 2
    assert peak / games < 32


# --- rows ---


def packed_by_hand(texts, length):
    """Fill a row game by game, cut it, drop the rest of its last game, begin anew; drop an incomplete row."""
    rows, row = [], ""
    for text in texts:
        row += text.decode()
        if len(row) >= length:
            rows.append(row[:length])
            row = ""
    return rows


@pytest.mark.parametrize("length", [2, 3, 17, 60, 61, 256])
@pytest.mark.parametrize("seed", range(4))
def test_packed_rows_equal_the_definition(length, seed):
    texts = made_up_games(200 + seed, seed)
    rows = Rows(games_of(texts), f"packed:{length}")
    expected = packed_by_hand(texts, length)
    tokens, lengths = rows.batch(np.arange(len(rows)))
    assert [decode(row) for row in tokens] == expected
    assert rows.length == length and tokens.dtype == np.uint8
    assert lengths.tolist() == [length] * len(expected) and lengths.dtype == np.int64


def test_packed_rows_over_more_than_one_block():
    count = (1 << 20) + 5000
    games = Sequences(
        np.full(3 * count, 15, np.uint8), np.arange(count + 1, dtype=np.uint64) * np.uint64(3), CHARACTERS
    )
    rows = Rows(games, "packed:7")
    assert len(rows) == count // 3
    assert np.array_equal(rows._first, np.arange(0, count - 2, 3))


def test_game_rows_are_cut_or_padded():
    texts = [b";1.e4 e5", b";", b";1.d4 d5 2.c4", b";1.c4"]
    rows = Rows(games_of(texts), "games:8")
    tokens, lengths = rows.batch([3, 2, 1, 0, 3])
    assert tokens.shape == (5, 8) and len(rows) == 4
    assert lengths.tolist() == [5, 8, 1, 8, 5]
    assert [decode(row) for row in tokens] == [";1.c4   ", ";1.d4 d5", ";       ", ";1.e4 e5", ";1.c4   "]


@pytest.mark.parametrize("cut", ["packed", "packed:", "packed:1", "games:0", "rows:4", "games:-3", "games:2.5", ""])
def test_a_bad_cut_is_an_error_with_the_two_forms(cut):
    with pytest.raises(ValueError, match=r"'packed:N'.*'games:N'"):
        Rows(games_of([b";1.e4"]), cut)


def test_rows_out_of_range():
    rows = Rows(games_of([b";1.e4"]), "games:4")
    for bad in ([1], [-1], [[0]]):
        with pytest.raises(IndexError, match=r"0\.\.0"):
            rows.batch(bad)
    with pytest.raises(ValueError, match="shorter cut"):
        Rows(games_of([b";1.e4"]), "packed:6")


# --- sampler ---

MASK = 2**64 - 1


def mix_by_hand(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def row_by_hand(num_rows, seed, place):
    epoch, value = divmod(place, num_rows)
    key = mix_by_hand((epoch + mix_by_hand(seed & MASK)) & MASK)
    half = 2
    while 4**half < num_rows:
        half += 1
    while True:
        left, right = divmod(value, 1 << half)
        for number in range(6):
            mixed = mix_by_hand(right ^ mix_by_hand((key + number) & MASK))
            left, right = right, left ^ (mixed % (1 << half))
        value = (left << half) + right
        if value < num_rows:
            return value


@pytest.mark.parametrize("num_rows", [1, 2, 3, 15, 16, 17, 1000, 4096, 5_040_000, 2**40 + 3])
@pytest.mark.parametrize("seed", [0, 1, -7, 2**70])
def test_sampler_equals_its_twin(num_rows, seed):
    for step in (0, 5, 123_456):
        expected = [row_by_hand(num_rows, seed, step * 33 + i) for i in range(33)]
        assert row_indices(num_rows, seed, step, 33).tolist() == expected


@pytest.mark.parametrize("num_rows", [*range(1, 70), 255, 256, 257, 1023])
def test_every_epoch_is_a_permutation_whatever_the_batch(num_rows):
    flat = np.concatenate([row_indices(num_rows, 3, step, 7) for step in range((3 * num_rows + 6) // 7)])
    epochs = flat[: 3 * num_rows].reshape(3, num_rows)
    assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(num_rows), (3, 1)))
    if num_rows > 20:
        assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
        assert not np.array_equal(epochs[0], row_indices(num_rows, 4, 0, num_rows))


def test_first_batches_are_spread_evenly():
    num_rows, bins = 1000, 10
    firsts = np.concatenate([row_indices(num_rows, seed, 0, 10) for seed in range(400)])
    counts = np.bincount(firsts * bins // num_rows, minlength=bins)
    # Chi-square with 9 degrees of freedom exceeds 33.7 once in 10,000 times.
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 33.7
    # Neighbouring places land far apart: differences of a random order are uniform, too.
    order = row_indices(num_rows, 0, 0, num_rows)
    jumps = Counter(((np.diff(order) % num_rows) * bins // num_rows).tolist())
    assert max(jumps.values()) < 150 and min(jumps.values()) > 60


def test_sampler_refuses_nonsense():
    for arguments in ((0, 0, 0, 1), (5, 0, -1, 1), (5, 0, 0, 0)):
        with pytest.raises(ValueError, match="num_rows"):
            row_indices(*arguments)
