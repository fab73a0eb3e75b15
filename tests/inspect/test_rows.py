"""Rows of a store, which are made a block at a time, against lists of all of them."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from glassmoe import checksums
from glassmoe.checksums import Damaged, map_tensors, stream_tensors
from glassmoe.data.corpus import Corpus, Rows, Sequences, row_indices
from glassmoe.inspect import merging, rows
from glassmoe.inspect.rows import StoreRows, beginnings, drawn_windows, longest, pieces
from text_files import made_up_texts, prepared

Lists = tuple[np.ndarray, np.ndarray, np.ndarray]


def plain_beginnings(sequences: Sequences, length: int, read: int, seed: int) -> Lists:
    cut = Rows(sequences, f"{sequences.kind.unit}:{length}")
    chosen = row_indices(len(cut), seed, 0, max(2, min(len(cut), -(-read // length))))
    return chosen, np.zeros_like(chosen), cut.batch(chosen)[1]


def plain_pieces(sequences: Sequences, length: int, read: int, seed: int) -> Lists:
    """All rows of both halves in lists, then in turn, then cut."""
    sizes = np.diff(sequences.offsets.astype(np.int64)) - 1
    halves: tuple[list[tuple[int, int]], ...] = ([], [])
    for document in row_indices(len(sequences), seed, 0, len(sequences)).tolist():
        half = int(len(halves[0]) > len(halves[1]))
        halves[half].extend((document, begin) for begin in range(0, max(1, int(sizes[document])), length - 1))
    in_turn = [row for pair in zip(*halves, strict=False) for row in pair]
    if len(halves[0]) > len(halves[1]):
        in_turn.append(halves[0][len(halves[1])])
    documents, begins = np.array(in_turn, np.int64).T
    lengths = 1 + np.minimum(length - 1, sizes[documents] - begins)
    kept = slice(max(2, int(np.searchsorted(np.cumsum(lengths - 1), read)) + 1))
    return documents[kept], begins[kept], lengths[kept]


def plain_windows(lengths: np.ndarray, row: int, window: int, size: int, seed: int) -> dict[str, np.ndarray]:
    a_row = row // window
    windows = np.flatnonzero((np.arange(a_row) < (lengths // window)[:, None]).flatten())
    even = windows // a_row % 2 == 0
    rng = np.random.default_rng([seed, 1])
    return {
        half: np.sort(rng.choice(among, min(size, len(among)), replace=False))
        for half, among in zip(("explaining", "scoring"), (windows[even], windows[~even]), strict=True)
    }


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Sequences:
    folder = tmp_path_factory.mktemp("text")
    prepared(folder / "data", made_up_texts(150, longest=200))
    return Corpus.open(folder / "data").split("train")


@pytest.mark.parametrize(("length", "read", "seed"), [(9, 300, 0), (16, 10**6, 1), (64, 1, 2), (500, 900, 3)])
@pytest.mark.parametrize("small", [False, True])
def test_rows_in_blocks_against_lists(
    text: Sequences, noise_games: Path, length: int, read: int, seed: int, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:
        monkeypatch.setattr(rows, "DOCUMENTS", 3)
        monkeypatch.setattr(rows, "BLOCK", 5)
    games = Corpus.open(noise_games).split("valid")
    for sequences, made, plain in (
        (text, pieces, plain_pieces), (text, beginnings, plain_beginnings), (games, beginnings, plain_beginnings)
    ):  # fmt: skip
        documents, begins, lengths = plain(sequences, length, read, seed)
        found = made(sequences, length, read, seed)
        assert (len(found), found.tokens) == (len(documents), lengths.sum())
        for size in (1, 7, 4096):
            blocks = list(found.blocks(size))
            assert [block.first for block in blocks] == list(range(0, len(documents), size))
            for name, expected in (("documents_R", documents), ("begins_R", begins), ("lengths_R", lengths)):
                assert np.array_equal(np.concatenate([getattr(block, name) for block in blocks]), expected), name
            for block in blocks[:3]:
                for tokens, document, begin, count in zip(
                    block.tokens(), block.documents_R, block.begins_R, block.lengths_R, strict=True
                ):
                    whole = sequences.tokens(int(document))
                    assert tokens[0] == whole[0] and not tokens[count:].any()
                    assert np.array_equal(tokens[1:count], whole[1 + begin : begin + count])
        expected_windows = plain_windows(lengths, length, 4, 12, seed)
        found_windows = drawn_windows(found, 4, 12, seed)
        assert all(np.array_equal(found_windows[half], each) for half, each in expected_windows.items())
        assert longest(sequences) == np.diff(sequences.offsets.astype(np.int64)).max()


class Endless:
    """Stands for sequences of a corpus of any size: sequence i has 40 to 71 tokens, each the number of its place."""

    def __init__(self, kind: object, count: int):
        self.kind, self.sources, self.count = kind, None, count
        ends = np.arange(1, 33).cumsum() + 40 * np.arange(1, 33) - 1 * np.arange(1, 33)
        self._ends = np.concatenate([[0], ends])
        self.offsets, self.data = self, np.zeros(0)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, documents: np.ndarray) -> np.ndarray:
        whole, rest = np.divmod(documents, 32)
        return (whole * self._ends[-1] + self._ends[rest]).astype(np.uint64)


def test_the_memory_of_rows_does_not_grow_with_tokens(text: Sequences) -> None:
    """Counting, drawing windows, reading and writing rows of 6 times as many tokens takes no more memory."""
    peaks = {}
    for count in (5_000, 30_000):
        endless: object = Endless(text.kind, count)
        tracemalloc.start()
        found = pieces(endless, 32, 10**12, 0)  # type: ignore[arg-type]
        drawn_windows(found, 8, 100, 0)
        for block in found.blocks(16):
            _ = block.lengths_R
        peaks[count] = tracemalloc.get_traced_memory()[1], found.tokens
        tracemalloc.stop()
    (small, few), (large, many) = peaks.values()
    assert many > 5.9 * few and large < 1.1 * small + 20_000


def test_the_memory_of_writing_and_opening_rows_does_not_grow_with_tokens(
    text: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "TOKENS_WRITTEN", 1 << 10)
    monkeypatch.setattr(rows, "BLOCK", 64)
    monkeypatch.setattr(checksums, "CHUNK", 1 << 12)
    peaks = []
    for copies in (4, 80):
        once = pieces(text, 32, 10**12, 0)

        def plan(once: StoreRows = once, copies: int = copies) -> rows.Plan:
            for _ in range(copies):
                yield from once.plan()

        found = rows.planned(text, 32, plan)
        tracemalloc.start()
        merging.write_rows(tmp_path / f"{copies}.safetensors", found)
        opened = map_tensors(tmp_path / f"{copies}.safetensors")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert opened["tokens"].shape == (len(found), 32)
        assert np.array_equal(opened["tokens"], np.concatenate([block.tokens() for block in found.blocks()]))
    sizes = [(tmp_path / f"{copies}.safetensors").stat().st_size for copies in (4, 80)]
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 15


def test_arrays_that_are_written_in_parts_are_those_of_safetensors(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(12, dtype=np.uint16).reshape(4, 3),
        "b": np.arange(4, dtype=np.int64),
        "none": np.zeros((0, 5), np.uint8),
        "bytes": np.arange(3, dtype=np.uint8),
    }
    parts = [("a", 2, arrays["a"][2:]), ("b", 0, arrays["b"]), ("a", 0, arrays["a"][:2]), ("bytes", 0, arrays["bytes"])]
    path = tmp_path / "x.safetensors"
    stream_tensors(path, {name: (each.dtype, each.shape) for name, each in arrays.items()}, parts, {"of": "me"})
    for found in (load_file(path), map_tensors(path)):
        assert found.keys() == arrays.keys()
        assert all(
            np.array_equal(found[name], each) and found[name].dtype == each.dtype for name, each in arrays.items()
        )
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(Damaged, match="differs from the checksum"):
        map_tensors(path)
