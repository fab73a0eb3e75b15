"""Prepared corpora on disk, rows of tokens cut from them, and the order in which training reads the rows.

A corpus is a folder. For each split it holds `SPLIT.bin` (the token ids of all sequences, one after the other, each
sequence beginning with its start token, in the type of their kind) and `SPLIT.offsets.npy` (uint64, sequences + 1
entries: where each sequence begins, and the end). `manifest.json` is written last: a folder without it is an unfinished
preparation. Where a tokenizer makes the tokens, the folder has `tokenizer.json`. Where the sources of sequences are
kept, `SPLIT.sources.npy` (uint16, one a sequence) indexes the names in the manifest. `writer.py` makes such folders.

Packed rows of a fixed vocabulary follow the packing of Karvonen's chess data, which MoE-X (arXiv 2503.07639) trains on:
every row begins at the start of a sequence. Packed rows of a tokenizer's tokens are cut wherever a row is full, as
language models are commonly trained: only the tail is dropped.

Shape legend: R rows of a batch, N tokens of a row.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glassmoe.checksums import Damaged, without_checksum
from glassmoe.config import NewerSchema, check_version

from .domains import Domain, UnknownTokens, domain_of, preparing
from .tokens import TokenKind, Tokens
from .verified import verify_files

SCHEMA_VERSION = 1
FIRST_TOKENS = "characters"
"""Tokens of a manifest that does not name them, as the first versions wrote it."""
SPLITS = ("train", "valid")
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
SOURCES = "{}.sources.npy"
"""File of the sources of a split."""
FILES = tuple(name for split in SPLITS for name in (f"{split}.bin", f"{split}.offsets.npy"))

Int64 = npt.NDArray[np.int64]
UInt16 = npt.NDArray[np.uint16]
UInt64 = npt.NDArray[np.uint64]


class Sequences:
    """The sequences of one split: `data` [tokens] in the type of their kind and `offsets` uint64 [sequences + 1], both
    memory-mapped. `sources` uint16 [sequences]: the source of each, as an index into `source_names`; None where sources
    are not kept."""

    def __init__(
        self,
        data: Tokens,
        offsets: UInt64,
        kind: TokenKind,
        sources: UInt16 | None = None,
        source_names: tuple[str, ...] = (),
    ) -> None:
        self.data = data
        self.offsets = offsets
        self.kind = kind
        self.sources = sources
        self.source_names = source_names

    def __len__(self) -> int:
        return int(self.offsets.size) - 1

    def tokens(self, index: int) -> Tokens:
        """Token ids of one sequence, [its tokens]."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside the {len(self)} {self.kind.unit}")
        index %= len(self)
        return self.data[int(self.offsets[index]) : int(self.offsets[index + 1])]

    def text(self, index: int) -> str:
        """One sequence as text."""
        return self.kind.decode(self.tokens(index))

    def sources_of(self, documents: Int64) -> tuple[list[str], UInt16] | None:
        """The names of the sources of some sequences, and for each sequence the index of its name; None where sources
        are not kept."""
        if self.sources is None:
            return None
        numbers, found = np.unique(self.sources[documents], return_inverse=True)
        return [self.source_names[number] for number in numbers.tolist()], found.astype(np.uint16)


class Corpus:
    """A prepared folder, opened for reading: `manifest`, `tokens`, `vocab_size`, `split(name)`, `fingerprint`."""

    def __init__(self, path: Path, manifest: dict[str, Any], kind: TokenKind) -> None:
        self.path = path
        self.manifest = manifest
        self._kind = kind

    @classmethod
    def open(cls, path: str | Path, tokens: str | None = None) -> Corpus:
        """Opens a folder. ValueError when it is missing, unfinished, damaged or of another version. `tokens`: the kind
        that the caller expects, for the advice in messages only; `require` checks it. The bytes of a file are compared
        with the manifest once for each time that it changes (`verified.py`)."""
        path = Path(path)
        holding, advice = preparing(path, tokens)
        if not path.is_dir():
            raise ValueError(f"no prepared {holding} at {path}: there is no such folder; {advice}")
        if not (path / MANIFEST).is_file():
            raise ValueError(f"no finished preparation at {path}: it has no {MANIFEST}; {advice}")
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            version = manifest["schema_version"]
            check_version(path / MANIFEST, version, SCHEMA_VERSION)
            manifest = without_checksum(manifest)
            tokens = manifest.get("tokens", FIRST_TOKENS)
            if not isinstance(tokens, str):
                raise TypeError
            owner = domain_of(tokens)
            holding, advice = preparing(path, tokens)
            tokenized = tokens == owner.tokenized
            digests = [manifest["files"][file]["sha256"] for file in (*FILES, *([TOKENIZER] if tokenized else []))]
            start = manifest["tokenizer"]["separator"] if tokenized else ""
            counts = [manifest[owner.unit][split] for split in SPLITS]
            if not all(isinstance(count, int) for count in counts) or not all(
                isinstance(each, str) for each in (*digests, start, *_sources_in(manifest))
            ):
                raise TypeError
        except NewerSchema:
            raise
        except Damaged as error:
            raise Damaged(
                f"{path / MANIFEST} is damaged: {error}; copy the folder again from where it came from, or {advice}"
            ) from None
        except UnknownTokens as error:
            raise ValueError(f"{path / MANIFEST}: {error}") from None
        except (ValueError, LookupError, TypeError, RecursionError):
            raise ValueError(f"{path / MANIFEST} is not the manifest of prepared {holding}; {advice}") from None
        kind = _tokenized_kind(path, owner, digests[-1], start) if tokenized else owner.kinds[tokens]
        if version != SCHEMA_VERSION or (not tokenized and manifest.get("vocabulary") != spelled(kind)):
            raise ValueError(
                f"{path} was prepared in schema version {version}; this glassmoe reads version "
                f"{SCHEMA_VERSION} with its own vocabulary; {advice} --overwrite"
            )
        corpus = cls(path, manifest, kind)
        for split in SPLITS:
            corpus.split(split)
        verify_files(path, dict(zip(FILES, digests, strict=False)))
        return corpus

    def require(self, tokens: str, tokenizer: str | None = None) -> Corpus:
        """The corpus itself. ValueError when its tokens are not of the kind `tokens`, or not of the tokenizer with the
        sha256 `tokenizer` (`tokenizer_sha256` of a model or another corpus)."""
        if self.tokens != tokens:
            expected = domain_of(tokens)
            raise ValueError(
                f"{self.path} holds {domain_of(self.tokens).holds(self.tokens)}, expected {expected.holds(tokens)}; "
                f"prepare that with `{expected.prepare(tokens)}`, or train on this with --data.tokens {self.tokens}"
            )
        if tokenizer not in (None, self.tokenizer_sha256):
            raise ValueError(
                f"{self.path} was prepared with another tokenizer ({str(self.tokenizer_sha256)[:12]}) than the model's "
                f"({str(tokenizer)[:12]}); prepare it again with --tokenizer RUN, the directory of the model"
            )
        return self

    @property
    def tokens(self) -> str:
        """Name of the kind of tokens: `characters`, `moves`, `text`."""
        return self._kind.name

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary."""
        return self._kind.size

    @property
    def kind(self) -> TokenKind:
        """The kind of tokens, with its vocabulary and, where there is one, its tokenizer."""
        return self._kind

    @property
    def tokenizer_sha256(self) -> str | None:
        """sha256 (hex) of `tokenizer.json`; None for a fixed vocabulary."""
        return self._kind.tokenizer_sha256

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources of sequences; empty where these are not kept."""
        sources = self.manifest.get("sources")
        return tuple(sources["names"]) if sources else ()

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over the hashes of the files, the tokenizer among them: results name the data by it. Sources
        have no part in it, because the same tokens are the same data."""
        lines = [f"{name} {entry['sha256']}\n" for name, entry in sorted(self.manifest["files"].items())]
        return hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()

    def split(self, name: str) -> Sequences:
        """The sequences of the split `train` or `valid`. ValueError when its files are missing or damaged."""
        if name not in SPLITS:
            raise ValueError(f"a corpus has the splits {' and '.join(SPLITS)}, not {name!r}")
        file = self.path / f"{name}.bin"
        try:
            # An empty file cannot be mapped, and a tiny corpus may have no validation sequences.
            dtype = self._kind.dtype
            data = np.memmap(file, dtype, "r") if file.stat().st_size else np.zeros(0, dtype)
            offsets = np.load(self.path / f"{name}.offsets.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(
                f"{self.path}: cannot read split {name} ({str(error).partition('.')[0]}); prepare it again"
            ) from None
        if offsets.shape != (self.manifest[self._kind.unit][name] + 1,) or int(offsets[-1]) != data.size:
            raise ValueError(f"{file} and its offsets do not match the manifest; prepare {self.path} again")
        return Sequences(np.asarray(data), np.asarray(offsets), self._kind, self._sources(name), self.source_names)

    def _sources(self, split: str) -> UInt16 | None:
        """Sources of the sequences of a split. ValueError when the file differs from what the manifest says."""
        if not self.source_names:
            return None
        file = self.path / SOURCES.format(split)
        raw = file.read_bytes() if file.is_file() else b""
        if hashlib.sha256(raw).hexdigest() != self.manifest["sources"]["files"][file.name]["sha256"]:
            raise ValueError(f"{file} differs from the file in the manifest; prepare {self.path} again")
        sources: UInt16 = np.load(io.BytesIO(raw), allow_pickle=False)
        return sources


def _sources_in(manifest: dict[str, Any]) -> list[Any]:
    """The names of sources in a manifest and the hashes of their files."""
    if "sources" not in manifest:
        return []
    sources = manifest["sources"]
    return [*sources["names"], *(sources["files"][SOURCES.format(split)]["sha256"] for split in SPLITS)]


def spelled(kind: TokenKind) -> str:
    """A fixed vocabulary as the manifest has it: its tokens in the order of their ids."""
    return kind.separator.join(kind.vocabulary)


def _tokenized_kind(path: Path, owner: Domain, digest: str, start: str) -> TokenKind:
    """The kind of tokens of a folder with a tokenizer. ValueError when that is not the one that prepared it."""
    file = path / TOKENIZER
    raw = file.read_bytes() if file.is_file() else b""
    if hashlib.sha256(raw).hexdigest() != digest:
        raise ValueError(f"{file} is not the tokenizer that {path} was prepared with; prepare it again")
    assert owner.kind_of_tokenizer is not None
    return owner.kind_of_tokenizer(raw.decode("utf-8"), start)


class Rows:
    """Rows of N tokens cut from sequences.

    `UNIT:N` (`games:N` of chess, `documents:N` of text): the first N tokens of each sequence, shorter ones padded.
    `packed:N` of a fixed vocabulary: rows of exactly N tokens, each beginning at the start of a sequence, the next
    sequences following directly; the last sequence of a row is cut where the row ends, the rest of it is dropped, and
    so is an incomplete last row. `packed:N` of a tokenizer's tokens: N tokens after N tokens of all sequences end to
    end, so that a row may begin within one; an incomplete last row is dropped.
    """

    def __init__(self, sequences: Sequences, cut: str) -> None:
        unit = sequences.kind.unit
        match = re.fullmatch(rf"(packed|{unit}):(\d{{1,9}})", cut)
        if not match or int(match[2]) < 2:
            one = unit.removesuffix("s")
            raise ValueError(
                f"a cut is 'packed:N' (rows of N tokens, filled with following {unit}) or '{unit}:N' (the "
                f"first N tokens of each {one}), N >= 2, for instance 'packed:1024'; got {cut!r}"
            )
        self.sequences = sequences
        self.cut = cut
        self.length = int(match[2])
        packed = self.packed = match[1] == "packed"
        # Packed rows of a tokenizer's tokens lie end to end.
        self._filled = sequences.data.size // self.length if packed and sequences.kind.tokenizer is not None else None
        # First sequence of each row; None when row and sequence have the same number, or rows begin anywhere.
        self._first = _packed_starts(sequences.offsets, self.length) if packed and self._filled is None else None
        if not len(self):
            if not len(sequences):
                raise ValueError(
                    f"cut {cut!r} gives no row at all from a split without {unit}, because each is in one split "
                    f"as a whole; prepare more {unit}, or with a larger share for validation (--valid-share 0.1)"
                )
            raise ValueError(
                f"cut {cut!r} gives no row at all from {len(sequences)} {unit} with {sequences.data.size} "
                f"{sequences.kind.one}s; "
                f"prepare more {unit}, or take a shorter cut"
            )

    def __len__(self) -> int:
        if self._filled is not None:
            return self._filled
        return len(self.sequences) if self._first is None else int(self._first.size)

    def batch(self, indices: npt.ArrayLike) -> tuple[Tokens, Int64]:
        """`(tokens [R, N], lengths int64 [R])` of rows, the tokens in the type of their kind; places from `lengths[r]`
        on are padding (id 0)."""
        places, lengths = self._places(indices)
        tokens = self.sequences.data[np.minimum(places, self.sequences.data.size - 1)]
        tokens[np.arange(self.length) >= lengths[:, None]] = 0
        return tokens, lengths

    def lengths(self, indices: npt.ArrayLike) -> Int64:
        """int64 [R]: the lengths of rows, without reading them."""
        return self._starts(indices)[1]

    def documents(self, indices: npt.ArrayLike) -> Int64:
        """int64 [R, N]: the number of the sequence in which each token of rows stands, an index into
        `sequences.sources`; -1 where `batch` pads. A packed row may hold several."""
        places, lengths = self._places(indices)
        # Not as signed numbers: numpy would compare those with the offsets as floats.
        found = np.searchsorted(self.sequences.offsets, places.astype(np.uint64), side="right") - 1
        found[np.arange(self.length) >= lengths[:, None]] = -1
        return found

    def _places(self, indices: npt.ArrayLike) -> tuple[Int64, Int64]:
        """`(places in data [R, N], lengths [R])` of rows; beyond a row's length places mean nothing."""
        starts, lengths = self._starts(indices)
        return starts[:, None] + np.arange(self.length), lengths

    def _starts(self, indices: npt.ArrayLike) -> tuple[Int64, Int64]:
        """`(place in data of the first token [R], lengths [R])` of rows."""
        rows = np.asarray(indices, dtype=np.int64)
        if rows.ndim != 1 or (rows.size and (rows.min() < 0 or rows.max() >= len(self))):
            raise IndexError(f"rows are numbered 0..{len(self) - 1}, in one flat sequence")
        lengths = np.full(rows.size, self.length, dtype=np.int64)
        if self._filled is not None:
            starts = rows * self.length
        else:
            first = rows if self._first is None else self._first[rows]
            starts = self.sequences.offsets[first].astype(np.int64)
            if self._first is None:
                lengths = np.minimum(lengths, self.sequences.offsets[first + 1].astype(np.int64) - starts)
        return starts, lengths


def _packed_starts(offsets: UInt64, length: int) -> Int64:
    """The first sequence of each packed row, int64 [rows]."""
    starts: list[int] = []
    count, sequence = offsets.size - 1, 0
    end = int(offsets[-1])
    # In blocks: the whole table of "where a row that begins here would end" takes 128 MB for 16M sequences.
    while sequence < count:
        base, stop = sequence, min(sequence + (1 << 20), count)
        following = np.searchsorted(offsets, offsets[base:stop] + np.uint64(length)).tolist()
        while sequence < stop:
            starts.append(sequence)
            sequence = following[sequence - base]
    while starts and int(offsets[starts[-1]]) + length > end:
        starts.pop()
    return np.array(starts, dtype=np.int64)


def row_indices(num_rows: int, seed: int, step: int, batch_rows: int) -> Int64:
    """The rows of training step `step` (from 0): int64 [batch_rows], a pure function of its arguments.

    Every epoch walks all rows once, in an order of its own; a batch may reach into the next epoch. The order
    is a keyed Feistel network over the next power of four, walked until it lands on a row (Black and Rogaway,
    "Ciphers with arbitrary finite domains", 2002), so there is no state to save and no random stream to keep
    in step.
    """
    if num_rows < 1 or batch_rows < 1 or step < 0:
        raise ValueError(f"need num_rows >= 1, batch_rows >= 1, step >= 0; given {num_rows}, {batch_rows}, {step}")
    places = step * batch_rows + np.arange(batch_rows, dtype=np.int64)
    epochs, within = np.divmod(places, num_rows)
    half = max(2, ((num_rows - 1).bit_length() + 1) // 2)
    keys = mix(epochs.astype(np.uint64) + mix(np.array([seed & _MASK64], dtype=np.uint64)))
    values = _feistel(within.astype(np.uint64), keys, half)
    outside = values >= num_rows
    while outside.any():
        values[outside] = _feistel(values[outside], keys[outside], half)
        outside = values >= num_rows
    return values.astype(np.int64)


_MASK64 = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = 6


def mix(x: UInt64) -> UInt64:
    """Each number as another, one to one, as if at random: the finaliser of splitmix64 (Steele, Lea, Flood 2014).
    Arithmetic wraps at 2**64."""
    x = x + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _feistel(values: UInt64, keys: UInt64, half: int) -> UInt64:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for number in range(_ROUNDS):
        mixed = mix(right ^ mix(keys + np.uint64(number)))
        left, right = right, left ^ (mixed & mask)
    return (left << shift) | right
