"""Prepared games or documents on disk, rows of tokens from them, and the order in which training reads the rows.

A prepared folder holds, for each split, `SPLIT.bin` (token ids of all games, one after the other, every game
beginning with `;`: uint8 where a token is a character, little-endian uint16 where it is a move) and
`SPLIT.offsets.npy` (uint64, games + 1 entries: where each game begins, and the end), and `manifest.json`, which is
written last: a folder without it is an unfinished preparation. Text has documents for games, every one beginning with
its tokenizer's separator, ids in uint16 (uint32 above 65,536 of them), and `tokenizer.json` beside; and where documents
came from, as `SPLIT.sources.npy` (uint16, one a document, by which the manifest's names are numbered; absent in folders
of before). `writer.py` makes such folders.

Rows of games follow the packing of Karvonen's chess data, which MoE-X (arXiv 2503.07639) trains on: `packed:1024` rows
all begin at the start of a game. `games:256` rows are the beginnings of single games. `packed:1024` rows of text are
cut wherever a row is full, as language models are commonly trained: nothing is dropped but the tail.

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

from glassmoe.config import NewerSchema, check_version

from .tokens import CHARACTERS, KINDS, TEXT, TokenKind, Tokens

SCHEMA_VERSION = 1
TRAIN_EXAMPLE = "train:8192"
SPLITS = ("train", "valid")
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
SOURCES = "{}.sources.npy"
"""The file of a split's sources."""
FILES = tuple(name for split in SPLITS for name in (f"{split}.bin", f"{split}.offsets.npy"))

Int64 = npt.NDArray[np.int64]
UInt16 = npt.NDArray[np.uint16]
UInt64 = npt.NDArray[np.uint64]


class Games:
    """The games or documents of one split: `data` [tokens] in the type of their kind, `offsets` uint64 [games + 1],
    both memory-mapped. `sources` uint16 [documents]: where each came from, as a place in `source_names`; None, and no
    names, where that is not kept."""

    def __init__(
        self,
        data: Tokens,
        offsets: UInt64,
        kind: TokenKind = CHARACTERS,
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
        """Token ids of one game, [tokens of the game]."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"number {index} of {len(self)} {self.kind.unit}")
        index %= len(self)
        return self.data[int(self.offsets[index]) : int(self.offsets[index + 1])]

    def text(self, index: int) -> str:
        """One game as text, `;1.e4 e5 ...` or, as moves, `; e2e4 e7e5 ...`; one document without its separator."""
        return self.kind.decode(self.tokens(index))

    def sources_of(self, documents: Int64) -> tuple[list[str], UInt16] | None:
        """The names of the sources that some documents came from, and for each which of these; None where sources are
        not kept."""
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
    def open(cls, path: str | Path, tokens: str = CHARACTERS.name) -> Corpus:
        """Opens a folder; ValueError when it is missing, unfinished, of another version, or damaged. `tokens`: what is
        expected there, for the advice only; `require` insists."""
        path = Path(path)
        advice = _advice(path, text=tokens == TEXT)
        if not path.is_dir():
            raise ValueError(f"no prepared {advice[0]} at {path}: there is no such folder; {advice[1]}")
        if not (path / MANIFEST).is_file():
            raise ValueError(f"no finished preparation at {path}: it has no {MANIFEST}; {advice[1]}")
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            version = manifest["schema_version"]
            check_version(path / MANIFEST, version, SCHEMA_VERSION)
            # Folders of characters did not always say so.
            name = manifest.get("tokens", CHARACTERS.name)
            advice, games = _advice(path, text=name == TEXT), KINDS.get(name)
            counts = {split: manifest["documents" if name == TEXT else "games"][split] for split in SPLITS}
            digests = [manifest["files"][file]["sha256"] for file in (*FILES, *([TOKENIZER] if name == TEXT else []))]
            start = manifest["tokenizer"]["separator"] if name == TEXT else ""
            if not all(isinstance(count, int) for count in counts.values()) or not all(
                isinstance(each, str) for each in (*digests, start, *_sources_in(manifest))
            ):
                raise TypeError
        except NewerSchema:
            raise
        except (ValueError, LookupError, TypeError, RecursionError):
            raise ValueError(f"{path / MANIFEST} is not the manifest of prepared {advice[0]}; {advice[1]}") from None
        kind = _text_kind(path, digests[-1], start) if name == TEXT else games
        if (
            version != SCHEMA_VERSION
            or kind is None
            or (kind.tokenizer is None and manifest.get("vocabulary") != shown(kind))
        ):
            raise ValueError(
                f"{path} was prepared in schema version {version}; this glassmoe reads version "
                f"{SCHEMA_VERSION} with its own vocabulary; {advice[1]} --overwrite"
            )
        corpus = cls(path, manifest, kind)
        for split in SPLITS:
            corpus.split(split)
        return corpus

    def require(self, tokens: str, tokenizer: str | None = None) -> Corpus:
        """The corpus itself; ValueError when its tokens are not `tokens` (`characters`, `moves` or `text`), or, where
        `tokenizer` is given (`tokenizer_sha256` of another corpus), not of that tokenizer."""
        if self.tokens != tokens:
            verb = f"text FILES --tokenizer {TRAIN_EXAMPLE}" if tokens == TEXT else f"chess --tokens {tokens}"
            held, needed = (name if name == TEXT else f"games as {name}" for name in (self.tokens, tokens))
            is_or_are = "is" if tokens == TEXT else "are"
            raise ValueError(
                f"{self.path} holds {held}, and {needed} {is_or_are} needed here; prepare those with "
                f"glassmoe data {verb}, or train on these with --data.tokens {self.tokens}"
            )
        if tokenizer not in (None, self.tokenizer_sha256):
            raise ValueError(
                f"the text of {self.path} was prepared with another tokenizer than the model's "
                f"({str(self.tokenizer_sha256)[:12]} instead of {str(tokenizer)[:12]}); prepare the text again with "
                f"--tokenizer RUN, the model's directory"
            )
        return self

    @property
    def tokens(self) -> str:
        """What a token is: `characters` or `moves` of games, or `text`."""
        return self._kind.name

    @property
    def vocab_size(self) -> int:
        """How many different tokens there are: 32 characters, 1,969 moves with the start of a game, or those of the
        tokenizer of a text."""
        return self._kind.size

    @property
    def kind(self) -> TokenKind:
        """What a token is, with its vocabulary; that of a text holds the tokenizer."""
        return self._kind

    @property
    def tokenizer_sha256(self) -> str | None:
        """sha256 (hex) of a text's `tokenizer.json`; None for games."""
        return self._kind.tokenizer_sha256

    @property
    def source_names(self) -> tuple[str, ...]:
        """The names of the sources that a text's documents came from; none where these are not kept."""
        found = self.manifest.get("sources")
        return tuple(found["names"]) if found else ()

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over the hashes of the files, a text's tokenizer among them: results name the data by it. Where
        documents came from has no part in it: the same tokens are the same data."""
        lines = [f"{name} {entry['sha256']}\n" for name, entry in sorted(self.manifest["files"].items())]
        return hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()

    def split(self, name: str) -> Games:
        """The games or documents of `train` or `valid`."""
        if name not in SPLITS:
            raise ValueError(f"a corpus has the splits {' and '.join(SPLITS)}, not {name!r}")
        file = self.path / f"{name}.bin"
        try:
            # An empty file cannot be mapped, and a tiny corpus may have no valid games.
            dtype = self._kind.dtype
            data = np.memmap(file, dtype, "r") if file.stat().st_size else np.zeros(0, dtype)
            offsets = np.load(self.path / f"{name}.offsets.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(
                f"{self.path}: cannot read split {name} ({str(error).partition('.')[0]}); prepare it again"
            ) from None
        if offsets.shape != (self.manifest[self._kind.unit][name] + 1,) or int(offsets[-1]) != data.size:
            raise ValueError(f"{file} and its offsets do not match the manifest; prepare {self.path} again")
        return Games(np.asarray(data), np.asarray(offsets), self._kind, self._sources(name), self.source_names)

    def _sources(self, split: str) -> UInt16 | None:
        """Where the documents of a split came from; ValueError when the file is not the manifest's."""
        if not self.source_names:
            return None
        file = self.path / SOURCES.format(split)
        raw = file.read_bytes() if file.is_file() else b""
        if hashlib.sha256(raw).hexdigest() != self.manifest["sources"]["files"][file.name]["sha256"]:
            raise ValueError(f"{file} is not what the manifest says of it; prepare {self.path} again")
        sources: UInt16 = np.load(io.BytesIO(raw), allow_pickle=False)
        return sources


def _sources_in(manifest: dict[str, Any]) -> list[Any]:
    """The names and hashes that a manifest has of its sources."""
    if "sources" not in manifest:
        return []
    found = manifest["sources"]
    return [*found["names"], *(found["files"][SOURCES.format(split)]["sha256"] for split in SPLITS)]


def shown(kind: TokenKind) -> str:
    """The vocabulary of games as the manifest has it: its tokens in the order of their ids."""
    return kind.separator.join(kind.vocabulary)


def _advice(path: Path, text: bool) -> tuple[str, str]:
    """What a folder should hold, and the command that prepares it."""
    if text:
        return "text", f"prepare text with: glassmoe data text FILES --tokenizer {TRAIN_EXAMPLE} --out {path}"
    return "games", f"prepare games with: glassmoe data chess GAMES.pgn --out {path}"


def _text_kind(path: Path, digest: str, start: str) -> TokenKind:
    """The kind of a folder of text; ValueError when its tokenizer is not the one that prepared it."""
    from glassmoe.text.tokens import text_kind

    file = path / TOKENIZER
    raw = file.read_bytes() if file.is_file() else b""
    if hashlib.sha256(raw).hexdigest() != digest:
        raise ValueError(f"{file} is not the tokenizer that the text of {path} was prepared with; prepare it again")
    return text_kind(raw.decode("utf-8"), start)


class Rows:
    """Rows of N tokens cut from games or documents.

    `packed:N` of games: rows of exactly N tokens, each beginning at the start of a game, the next games following
    directly; the last game of a row is cut where the row ends, the rest of it is dropped, and so is an
    incomplete last row. `packed:N` of text: N tokens after N tokens of the documents one after the other, so that a
    row may begin within one; an incomplete last row is dropped. `games:N`, of text `documents:N`: the first N tokens
    of each, shorter ones padded.
    """

    def __init__(self, games: Games, cut: str) -> None:
        unit = games.kind.unit
        found = re.fullmatch(rf"(packed|{unit}):(\d{{1,9}})", cut)
        if not found or int(found[2]) < 2:
            one = unit.removesuffix("s")
            raise ValueError(
                f"a cut is 'packed:N' (rows of N tokens, filled with following {unit}) or '{unit}:N' (the "
                f"first N tokens of each {one}), N >= 2, for instance 'packed:1024'; given: {cut!r}"
            )
        self.games = games
        self.cut = cut
        self.length = int(found[2])
        packed = found[1] == "packed"
        # Rows of text that are filled lie end to end.
        self._filled = games.data.size // self.length if packed and games.kind.tokenizer is not None else None
        # First game of each row; None when row and game are the same number, or rows do not begin with games.
        self._first = _packed_starts(games.offsets, self.length) if packed and self._filled is None else None
        if not len(self):
            raise ValueError(
                f"cut {cut!r} gives no row at all from {len(games)} {unit} with {games.data.size} "
                f"{'tokens' if games.kind.tokenizer else games.kind.name}; "
                f"prepare more {unit}, a larger valid_share, or take a shorter cut"
            )

    def __len__(self) -> int:
        if self._filled is not None:
            return self._filled
        return len(self.games) if self._first is None else int(self._first.size)

    def batch(self, indices: npt.ArrayLike) -> tuple[Tokens, Int64]:
        """`(tokens [R, N], lengths int64 [R])` of rows, the tokens in the games' type; places from `lengths[r]` on
        are padding (id 0)."""
        places, lengths = self._places(indices)
        tokens = self.games.data[np.minimum(places, self.games.data.size - 1)]
        tokens[np.arange(self.length) >= lengths[:, None]] = 0
        return tokens, lengths

    def documents(self, indices: npt.ArrayLike) -> Int64:
        """int64 [R, N]: the number of the game or document in which each token of rows stands, by which
        `games.sources` says where it came from; -1 where `batch` pads. A packed row may hold several."""
        places, lengths = self._places(indices)
        # Not as signed numbers: numpy would compare those with the offsets as floats.
        found = np.searchsorted(self.games.offsets, places.astype(np.uint64), side="right") - 1
        found[np.arange(self.length) >= lengths[:, None]] = -1
        return found

    def _places(self, indices: npt.ArrayLike) -> tuple[Int64, Int64]:
        """`(places in data [R, N], lengths [R])` of rows; beyond a row's length places mean nothing."""
        rows = np.asarray(indices, dtype=np.int64)
        if rows.ndim != 1 or (rows.size and (rows.min() < 0 or rows.max() >= len(self))):
            raise IndexError(f"rows are numbered 0..{len(self) - 1}, in one flat sequence")
        lengths = np.full(rows.size, self.length, dtype=np.int64)
        if self._filled is not None:
            starts = rows * self.length
        else:
            first = rows if self._first is None else self._first[rows]
            starts = self.games.offsets[first].astype(np.int64)
            if self._first is None:
                lengths = np.minimum(lengths, self.games.offsets[first + 1].astype(np.int64) - starts)
        return starts[:, None] + np.arange(self.length), lengths


def _packed_starts(offsets: UInt64, length: int) -> Int64:
    """The first game of each packed row, int64 [rows]."""
    starts: list[int] = []
    games, game = offsets.size - 1, 0
    end = int(offsets[-1])
    # In blocks: the whole table of "where a row that begins here would end" takes 128 MB for 16M games.
    while game < games:
        base, stop = game, min(game + (1 << 20), games)
        following = np.searchsorted(offsets, offsets[base:stop] + np.uint64(length)).tolist()
        while game < stop:
            starts.append(game)
            game = following[game - base]
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
