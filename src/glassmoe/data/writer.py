"""Sequences on their way to a prepared folder (`corpus.py` says what it holds): streamed, freed of exact duplicates,
split by hash, and published whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from glassmoe.atomic import flush
from glassmoe.checksums import with_checksum
from glassmoe.locks import writing

from .corpus import FILES, MANIFEST, SCHEMA_VERSION, SOURCES, SPLITS, TOKENIZER, UInt64, spelled
from .origins import SourceNumbers
from .prepared import PreparedCorpus, prepared_corpus
from .tokens import TokenKind, Tokens

_PARTIAL = ".partial"
_TEXTS_A_PASS, _TOKENS_A_PASS = 1 << 16, 1 << 24


class PackedSequences(NamedTuple):
    """Sequences on their way to a writer: token ids of all, length of each in tokens, 8-byte hash of each text, and
    where there is a tokenizer the length of each text in bytes of UTF-8 and the name of its source."""

    tokens: Tokens
    lengths: npt.NDArray[np.uint32]
    hashes: UInt64
    sizes: npt.NDArray[np.uint32] | None = None
    sources: Sequence[str] | None = None

    def first(self, count: int) -> PackedSequences:
        """The first `count` of them."""
        lengths = self.lengths[:count]
        sizes = None if self.sizes is None else self.sizes[:count]
        sources = None if self.sources is None else self.sources[:count]
        tokens = self.tokens[: int(lengths.sum(dtype=np.int64))]
        return PackedSequences(tokens, lengths, self.hashes[:count], sizes, sources)


def hash_texts(texts: Sequence[bytes]) -> UInt64:
    """The 8-byte hash of each text, by which duplicates are found and the split is made."""
    digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8")


def of_validation(hashes: UInt64, valid_share: float) -> npt.NDArray[np.bool_]:
    """Which texts fall into the validation split."""
    return hashes < np.uint64(int(valid_share * 2**64))


class CorpusWriter:
    """Streams sequences of one kind of tokens into a folder; `finish` removes exact duplicates, splits and publishes.

    Sequences keep their order. The split of a sequence depends only on its text, so that equal sequences always land on
    the same side. Memory is under 32 bytes a sequence. Used as a context manager, it leaves nothing half-done behind.
    A tokenizer lies at `tokenizer_file` while the writer is open. `sources`: numbers of the sources of sequences, where
    these are kept. No other process may write the folder meanwhile (`Locked`). ValueError as `check_target`.
    """

    def __init__(
        self,
        out: str | Path,
        kind: TokenKind,
        *,
        valid_share: float = 0.01,
        overwrite: bool = False,
        sources: SourceNumbers | None = None,
    ) -> None:
        self.kind = kind
        self.out = Path(out)
        check_target(self.out, valid_share, overwrite, self.kind.unit)
        self.valid_share = valid_share
        self.sources = sources
        self.count = 0
        self._published = FILES if self.kind.tokenizer is None else (*FILES, TOKENIZER)
        self._streams = ("tokens", "lengths", "hashes") + (() if self.kind.tokenizer is None else ("sizes",))
        self._streams += () if sources is None else ("sources",)
        self._lock = ExitStack()
        self._lock.enter_context(writing(self.out))
        self._remove_partials()
        if self.kind.tokenizer is not None:
            self.tokenizer_file.write_text(self.kind.tokenizer, encoding="utf-8", newline="")
        self._files = {name: self._partial(name).open("wb") for name in self._streams}

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        self._remove_partials()
        self._lock.close()

    @property
    def tokenizer_file(self) -> Path:
        """Where the tokenizer lies for other processes to read, until `finish` gives it its name."""
        return self._partial(TOKENIZER)

    def add(self, packed: PackedSequences) -> None:
        """Appends sequences; nothing is kept in memory."""
        lengths = packed.lengths
        assert int(lengths.sum(dtype=np.int64)) == packed.tokens.size and lengths.size == packed.hashes.size
        if not lengths.size:
            return
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        assert packed.tokens.dtype == self.kind.dtype
        assert lengths.min() > 0 and (packed.tokens[starts] == self.kind.start).all()
        self._files["tokens"].write(packed.tokens.tobytes())
        self._files["lengths"].write(lengths.astype("<u4").tobytes())
        self._files["hashes"].write(packed.hashes.astype("<u8").tobytes())
        if "sizes" in self._files:
            assert packed.sizes is not None and packed.sizes.size == lengths.size
            self._files["sizes"].write(packed.sizes.astype("<u4").tobytes())
        if self.sources is not None:
            assert packed.sources is not None and len(packed.sources) == lengths.size
            self._files["sources"].write(self.sources.numbers(packed.sources).astype("<u2").tobytes())
        self.count += lengths.size

    def finish(self, about: dict[str, Any]) -> PreparedCorpus:
        """Publishes the corpus, whose manifest also holds the entries `about`. ValueError without a sequence."""
        if not self.count:
            raise ValueError(f"no {self.kind.unit} to write")
        self._close()
        keep, valid = self._choose()
        chosen = {"train": keep & ~valid, "valid": keep & valid}
        counts, tokens = self._distribute(chosen)
        # From here to the last line the folder counts as unfinished, whatever it held before.
        (self.out / MANIFEST).unlink(missing_ok=True)
        sizes, sources = self._text_bytes(chosen), self._distribute_sources(chosen)
        for name in self._published:
            self._publish(name)
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "tokens": self.kind.name,
            **({"vocabulary": spelled(self.kind)} if self.kind.tokenizer is None else {}),
            **about,
            "valid_share": self.valid_share,
            self.kind.unit: counts,
            self.kind.counted: tokens,
            **sizes,
            **sources,
            "duplicates": self.count - sum(counts.values()),
            "files": {name: file_digest(self.out / name) for name in self._published},
        }
        text = json.dumps(with_checksum(manifest), indent=2) + "\n"
        self._partial(MANIFEST).write_text(text, encoding="utf-8")
        flush(self.out)  # the manifest says that the files are there
        self._publish(MANIFEST)
        flush(self.out)
        return prepared_corpus(self.out, self.kind, manifest)

    def _choose(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        hashes = np.fromfile(self._partial("hashes"), dtype="<u8")
        # A stable sort puts the first of equal sequences first. That two different ones among 16M share a hash
        # happens in about 1 of 100,000 such sets.
        order = np.argsort(hashes, kind="stable")
        in_order = hashes[order]
        repeated = in_order[1:] == in_order[:-1]
        del in_order
        keep = np.ones(self.count, dtype=np.bool_)
        keep[order[1:][repeated]] = False
        return keep, of_validation(hashes, self.valid_share)

    def _distribute(self, chosen: dict[str, npt.NDArray[np.bool_]]) -> tuple[dict[str, int], dict[str, int]]:
        lengths = np.fromfile(self._partial("lengths"), dtype="<u4")
        ends = np.cumsum(lengths, dtype=np.int64)
        files = {split: self._partial(f"{split}.bin").open("wb") for split in SPLITS}
        with self._partial("tokens").open("rb") as source, files["train"], files["valid"]:
            begin = 0
            while begin < self.count:
                before = int(ends[begin - 1]) if begin else 0
                # Sequences may be long, so a pass is bounded in tokens too.
                fitting = int(np.searchsorted(ends, before + _TOKENS_A_PASS, side="right"))
                part = slice(begin, min(begin + _TEXTS_A_PASS, max(begin + 1, fitting)))
                size = int(lengths[part].sum(dtype=np.int64)) * self.kind.dtype.itemsize
                tokens = np.frombuffer(source.read(size), dtype=self.kind.dtype)
                for split, file in files.items():
                    file.write(tokens[np.repeat(chosen[split][part], lengths[part])].tobytes())
                begin = part.stop
        counts, totals = {}, {}
        for split, mask in chosen.items():
            offsets = np.zeros(int(mask.sum()) + 1, dtype="<u8")
            np.cumsum(lengths[mask], out=offsets[1:])
            with self._partial(f"{split}.offsets.npy").open("wb") as file:
                np.save(file, offsets)
            counts[split], totals[split] = offsets.size - 1, int(offsets[-1])
        return counts, totals

    def _text_bytes(self, chosen: dict[str, npt.NDArray[np.bool_]]) -> dict[str, Any]:
        """The bytes of UTF-8 in the texts of each split, for the manifest; empty without a tokenizer."""
        if "sizes" not in self._files:
            return {}
        sizes = np.fromfile(self._partial("sizes"), dtype="<u4")
        return {"bytes": {split: int(sizes[mask].sum(dtype=np.int64)) for split, mask in chosen.items()}}

    def _distribute_sources(self, chosen: dict[str, npt.NDArray[np.bool_]]) -> dict[str, Any]:
        """Publishes the sources of the sequences of each split and returns their entries in the manifest. Hashes are
        among these, because sources have no part in the fingerprint of the tokens."""
        if self.sources is None or not self.sources.kept:
            return {}
        numbers = np.fromfile(self._partial("sources"), dtype="<u2")
        names, counts, files = self.sources.names, {}, {}
        for split, mask in chosen.items():
            name = SOURCES.format(split)
            with self._partial(name).open("wb") as file:
                np.save(file, numbers[mask])
            self._publish(name)
            files[name] = file_digest(self.out / name)
            counts[split] = np.bincount(numbers[mask], minlength=len(names)).tolist()
        return {"sources": {"field": self.sources.field, "names": names, "documents": counts, "files": files}}

    def _publish(self, name: str) -> None:
        """Gives a complete file its name."""
        flush(self._partial(name))
        self._partial(name).replace(self.out / name)

    def _partial(self, name: str) -> Path:
        return self.out / (name + _PARTIAL)

    def _close(self) -> None:
        for file in self._files.values():
            file.close()

    def _remove_partials(self) -> None:
        streams, sources = ("tokens", "lengths", "hashes", "sizes", "sources"), map(SOURCES.format, SPLITS)
        for name in (*streams, TOKENIZER, MANIFEST, *FILES, *sources):
            self._partial(name).unlink(missing_ok=True)


def check_target(out: Path, valid_share: float, overwrite: bool, unit: str) -> None:
    """ValueError when a corpus cannot be written to `out`: it is a file or holds a corpus already, or `valid_share` is
    not a share."""
    if not 0 <= valid_share < 1:
        raise ValueError(f"valid_share is {valid_share}; expected a share of the {unit}, 0 <= share < 1")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; pass a folder for the prepared {unit}")
    there = [name for name in (MANIFEST, *FILES) if (out / name).exists()]
    if there and not overwrite:
        raise ValueError(
            f"{out} already holds a prepared corpus ({there[0]}); "
            "pass a different folder, or overwrite=True (--overwrite)"
        )


def file_digest(path: Path) -> dict[str, Any]:
    """`{"bytes": ..., "sha256": ...}` of a whole file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
