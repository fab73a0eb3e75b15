"""Prepared games on disk, rows of tokens from them, and the order in which training reads the rows.

A prepared folder holds, for each split, `SPLIT.bin` (token ids of all games, one after the other, every game
beginning with `;`: uint8 where a token is a character, little-endian uint16 where it is a move) and
`SPLIT.offsets.npy` (uint64, games + 1 entries: where each game begins, and the end), and `manifest.json`, which is
written last: a folder without it is an unfinished preparation.

Rows follow the packing of Karvonen's chess data, which MoE-X (arXiv 2503.07639) trains on: `packed:1024` rows
all begin at the start of a game. `games:256` rows are the beginnings of single games.

Shape legend: R rows of a batch, N tokens of a row.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from glassmoe.config import NewerSchema, check_version

from .chess_text import encode
from .tokens import CHARACTERS, KINDS, TokenKind, Tokens, token_kind

SCHEMA_VERSION = 1
SPLITS = ("train", "valid")
MANIFEST = "manifest.json"
FILES = tuple(name for split in SPLITS for name in (f"{split}.bin", f"{split}.offsets.npy"))

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

_PARTIAL = ".partial"
_GAMES_A_PASS = 1 << 16


class PackedGames(NamedTuple):
    """Games on their way to a writer: token ids of all, length of each in tokens, 8-byte hash of each text."""

    tokens: Tokens
    lengths: npt.NDArray[np.uint32]
    hashes: UInt64


def pack_games(texts: Sequence[bytes], moves: Sequence[Tokens] | None = None) -> PackedGames:
    """Packs texts such as b";1.e4 e5", or the `moves` of these games (token ids of each) where they are given.

    The hash is that of the text in either form, so that a game is on the same side of the split in both. ValueError
    for a text that holds a character outside the vocabulary.
    """
    digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    games: Sequence[Any] = texts if moves is None else moves
    return PackedGames(
        tokens=encode(b"".join(texts)) if moves is None else np.concatenate([np.empty(0, np.uint16), *moves]),
        lengths=np.fromiter(map(len, games), dtype=np.uint32, count=len(texts)),
        hashes=np.frombuffer(digests, dtype="<u8"),
    )


class CorpusWriter:
    """Streams games into a folder; `finish` removes exact duplicates, splits and publishes.

    Games keep their order. Which split a game falls into depends only on its moves, so the same game always
    lands on the same side. Memory is under 32 bytes a game. Used as a context manager, it leaves nothing
    half-done behind. `tokens`: what a token of the games is, `characters` or `moves`.
    """

    def __init__(
        self, out: str | Path, *, valid_share: float = 0.01, overwrite: bool = False, tokens: str = CHARACTERS.name
    ) -> None:
        self.kind = token_kind(tokens)
        self.out = Path(out)
        if not 0 <= valid_share < 1:
            raise ValueError(f"valid_share is a share of the games, 0 <= share < 1, not {valid_share}")
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"{self.out} is a file; give a folder to write the prepared games to")
        there = [name for name in (MANIFEST, *FILES) if (self.out / name).exists()]
        if there and not overwrite:
            raise ValueError(
                f"{self.out} already holds prepared games ({there[0]}); "
                "give another folder, or overwrite=True (--overwrite)"
            )
        self.valid_share = valid_share
        self.games = 0
        self._made_folder = not self.out.exists()
        self.out.mkdir(parents=True, exist_ok=True)
        self._remove_partials()
        self._files = {name: self._partial(name).open("wb") for name in ("tokens", "lengths", "hashes")}

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        self._remove_partials()
        if self._made_folder and not any(self.out.iterdir()):
            self.out.rmdir()

    def add(self, games: PackedGames) -> None:
        """Appends games; nothing is kept in memory."""
        lengths = games.lengths
        assert int(lengths.sum(dtype=np.int64)) == games.tokens.size and lengths.size == games.hashes.size
        if not lengths.size:
            return
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        assert games.tokens.dtype == self.kind.dtype
        assert lengths.min() > 0 and (games.tokens[starts] == self.kind.start).all()
        self._files["tokens"].write(games.tokens.tobytes())
        self._files["lengths"].write(lengths.astype("<u4").tobytes())
        self._files["hashes"].write(games.hashes.astype("<u8").tobytes())
        self.games += lengths.size

    def finish(self, about: dict[str, Any]) -> dict[str, Any]:
        """Publishes the corpus and returns its manifest, which holds `about` too."""
        if not self.games:
            raise ValueError("no games to write")
        self._close()
        keep, valid = self._choose()
        counts, tokens = self._distribute(keep, valid)
        # From here to the last line the folder counts as unfinished, whatever it held before.
        (self.out / MANIFEST).unlink(missing_ok=True)
        for name in FILES:
            self._partial(name).replace(self.out / name)
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "tokens": self.kind.name,
            "vocabulary": _shown(self.kind),
            **about,
            "valid_share": self.valid_share,
            "games": counts,
            self.kind.name: tokens,
            "duplicates": self.games - sum(counts.values()),
            "files": {name: file_digest(self.out / name) for name in FILES},
        }
        self._partial(MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        self._partial(MANIFEST).replace(self.out / MANIFEST)
        return manifest

    def _choose(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        hashes = np.fromfile(self._partial("hashes"), dtype="<u8")
        # A stable sort puts the first of equal games first. That two different games among 16M share a hash
        # happens in about 1 of 100,000 such sets.
        order = np.argsort(hashes, kind="stable")
        in_order = hashes[order]
        repeated = in_order[1:] == in_order[:-1]
        del in_order
        keep = np.ones(self.games, dtype=np.bool_)
        keep[order[1:][repeated]] = False
        return keep, hashes < np.uint64(int(self.valid_share * 2**64))

    def _distribute(
        self, keep: npt.NDArray[np.bool_], valid: npt.NDArray[np.bool_]
    ) -> tuple[dict[str, int], dict[str, int]]:
        lengths = np.fromfile(self._partial("lengths"), dtype="<u4")
        chosen = {"train": keep & ~valid, "valid": keep & valid}
        files = {split: self._partial(f"{split}.bin").open("wb") for split in SPLITS}
        with self._partial("tokens").open("rb") as source, files["train"], files["valid"]:
            for begin in range(0, self.games, _GAMES_A_PASS):
                part = slice(begin, begin + _GAMES_A_PASS)
                size = int(lengths[part].sum(dtype=np.int64)) * self.kind.dtype.itemsize
                tokens = np.frombuffer(source.read(size), dtype=self.kind.dtype)
                for split, file in files.items():
                    file.write(tokens[np.repeat(chosen[split][part], lengths[part])].tobytes())
        counts, totals = {}, {}
        for split, mask in chosen.items():
            offsets = np.zeros(int(mask.sum()) + 1, dtype="<u8")
            np.cumsum(lengths[mask], out=offsets[1:])
            with self._partial(f"{split}.offsets.npy").open("wb") as file:
                np.save(file, offsets)
            counts[split], totals[split] = offsets.size - 1, int(offsets[-1])
        return counts, totals

    def _partial(self, name: str) -> Path:
        return self.out / (name + _PARTIAL)

    def _close(self) -> None:
        for file in self._files.values():
            file.close()

    def _remove_partials(self) -> None:
        for name in ("tokens", "lengths", "hashes", MANIFEST, *FILES):
            self._partial(name).unlink(missing_ok=True)


def file_digest(path: Path) -> dict[str, Any]:
    """`{"bytes": ..., "sha256": ...}` of a whole file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


class Games:
    """The games of one split: `data` uint8 or uint16 [tokens], `offsets` uint64 [games + 1], both memory-mapped."""

    def __init__(self, data: Tokens, offsets: UInt64, kind: TokenKind = CHARACTERS) -> None:
        self.data = data
        self.offsets = offsets
        self.kind = kind

    def __len__(self) -> int:
        return int(self.offsets.size) - 1

    def tokens(self, index: int) -> Tokens:
        """Token ids of one game, [tokens of the game]."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"game {index} of {len(self)}")
        index %= len(self)
        return self.data[int(self.offsets[index]) : int(self.offsets[index + 1])]

    def text(self, index: int) -> str:
        """One game as text, `;1.e4 e5 ...` or, as moves, `; e2e4 e7e5 ...`."""
        return self.kind.decode(self.tokens(index))


class Corpus:
    """A prepared folder, opened for reading: `manifest`, `tokens`, `vocab_size`, `split(name)`, `fingerprint`."""

    def __init__(self, path: Path, manifest: dict[str, Any], kind: TokenKind) -> None:
        self.path = path
        self.manifest = manifest
        self._kind = kind

    @classmethod
    def open(cls, path: str | Path) -> Corpus:
        """Opens a folder; ValueError when it is missing, unfinished, of another version, or damaged."""
        path = Path(path)
        advice = f"prepare games with: glassmoe data chess GAMES.pgn --out {path}"
        if not path.is_dir():
            raise ValueError(f"no prepared games at {path}: there is no such folder; {advice}")
        if not (path / MANIFEST).is_file():
            raise ValueError(f"no finished preparation at {path}: it has no {MANIFEST}; {advice}")
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            version = manifest["schema_version"]
            check_version(path / MANIFEST, version, SCHEMA_VERSION)
            counts = {split: manifest["games"][split] for split in SPLITS}
            digests = [manifest["files"][name]["sha256"] for name in FILES]
            # Folders of characters did not always say so.
            kind = KINDS.get(manifest.get("tokens", CHARACTERS.name))
            if not all(isinstance(count, int) for count in counts.values()) or not all(
                isinstance(digest, str) for digest in digests
            ):
                raise TypeError
        except NewerSchema:
            raise
        except (ValueError, LookupError, TypeError, RecursionError):
            raise ValueError(f"{path / MANIFEST} is not the manifest of prepared games; {advice}") from None
        if version != SCHEMA_VERSION or kind is None or manifest.get("vocabulary") != _shown(kind):
            raise ValueError(
                f"{path} was prepared in schema version {version}; this glassmoe reads version "
                f"{SCHEMA_VERSION} with its own vocabulary; {advice} --overwrite"
            )
        corpus = cls(path, manifest, kind)
        for split in SPLITS:
            corpus.split(split)
        return corpus

    def require(self, tokens: str) -> Corpus:
        """The corpus itself; ValueError when its tokens are not `tokens` (`characters` or `moves`)."""
        if self.tokens != tokens:
            raise ValueError(
                f"{self.path} holds games as {self.tokens}, and games as {tokens} are needed here; prepare those with "
                f"glassmoe data chess --tokens {tokens}, or train on these with --data.tokens {self.tokens}"
            )
        return self

    @property
    def tokens(self) -> str:
        """What a token is: `characters` or `moves`."""
        return self._kind.name

    @property
    def vocab_size(self) -> int:
        """How many different tokens there are: 32 characters, or 1,969 moves with the start of a game."""
        return self._kind.size

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over the hashes of the four files: results name the data by it."""
        lines = [f"{name} {entry['sha256']}\n" for name, entry in sorted(self.manifest["files"].items())]
        return hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()

    def split(self, name: str) -> Games:
        """The games of `train` or `valid`."""
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
        if offsets.shape != (self.manifest["games"][name] + 1,) or int(offsets[-1]) != data.size:
            raise ValueError(f"{file} and its offsets do not match the manifest; prepare {self.path} again")
        return Games(np.asarray(data), np.asarray(offsets), self._kind)


def _shown(kind: TokenKind) -> str:
    """A vocabulary as the manifest has it: its tokens in the order of their ids."""
    return kind.separator.join(kind.vocabulary)


class Rows:
    """Rows of N tokens cut from games.

    `packed:N`: rows of exactly N tokens, each beginning at the start of a game, the next games following
    directly; the last game of a row is cut where the row ends, the rest of it is dropped, and so is an
    incomplete last row. `games:N`: the first N tokens of each game, shorter ones padded.
    """

    def __init__(self, games: Games, cut: str) -> None:
        found = re.fullmatch(r"(packed|games):(\d{1,9})", cut)
        if not found or int(found[2]) < 2:
            raise ValueError(
                "a cut is 'packed:N' (rows of N tokens, filled with following games) or 'games:N' (the "
                f"first N tokens of each game), N >= 2, for instance 'packed:1024'; given: {cut!r}"
            )
        self.games = games
        self.cut = cut
        self.length = int(found[2])
        # First game of each row; None when row and game are the same number.
        self._first = _packed_starts(games.offsets, self.length) if found[1] == "packed" else None
        if not len(self):
            raise ValueError(
                f"cut {cut!r} gives no row at all from {len(games)} games with {games.data.size} {games.kind.name}; "
                "prepare more games, a larger valid_share, or take a shorter cut"
            )

    def __len__(self) -> int:
        return len(self.games) if self._first is None else int(self._first.size)

    def batch(self, indices: npt.ArrayLike) -> tuple[Tokens, Int64]:
        """`(tokens [R, N], lengths int64 [R])` of rows, the tokens in the games' type; places from `lengths[r]` on
        are padding (id 0)."""
        rows = np.asarray(indices, dtype=np.int64)
        if rows.ndim != 1 or (rows.size and (rows.min() < 0 or rows.max() >= len(self))):
            raise IndexError(f"rows are numbered 0..{len(self) - 1}, in one flat sequence")
        first = rows if self._first is None else self._first[rows]
        starts = self.games.offsets[first].astype(np.int64)
        lengths = np.full(rows.size, self.length, dtype=np.int64)
        if self._first is None:
            lengths = np.minimum(lengths, self.games.offsets[first + 1].astype(np.int64) - starts)
        columns = np.arange(self.length)
        places = np.minimum(starts[:, None] + columns, self.games.data.size - 1)
        tokens = self.games.data[places]
        tokens[columns >= lengths[:, None]] = 0
        return tokens, lengths


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
    keys = _mix(epochs.astype(np.uint64) + _mix(np.array([seed & _MASK64], dtype=np.uint64)))
    values = _feistel(within.astype(np.uint64), keys, half)
    outside = values >= num_rows
    while outside.any():
        values[outside] = _feistel(values[outside], keys[outside], half)
        outside = values >= num_rows
    return values.astype(np.int64)


_MASK64 = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = 6


def _mix(x: UInt64) -> UInt64:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014); arithmetic wraps at 2**64."""
    x = x + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _feistel(values: UInt64, keys: UInt64, half: int) -> UInt64:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for number in range(_ROUNDS):
        mixed = _mix(right ^ _mix(keys + np.uint64(number)))
        left, right = right, left ^ (mixed & mask)
    return (left << shift) | right
