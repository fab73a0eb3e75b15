"""Files of games or documents as streams: which files, how they are packed, and where a stream may be cut.

Whatever the size of an input, only a few chunks of it are in memory. Cutting never depends on the number of
workers. A stream that breaks (truncated or damaged) gives the games before the break; the break itself is
reported.
"""

from __future__ import annotations

import bz2
import hashlib
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import zstandard

STDIN = "-"
KINDS = {".pgn": "pgn", ".txt": "lines"}
"""What the files of games hold, by their endings."""
PACKINGS = (".zst", ".bz2", ".gz")
# A game, comments and all, is a few kilobytes; what has no end after this many bytes is not a game.
MAX_GAME_BYTES = 1 << 20

_READ_BYTES = 1 << 16
CHUNK_BYTES = 1 << 19
# No mark of a game's beginning is longer, so this much is kept where a search goes on in the next block.
_LONGEST_MARK = 64
_MAGIC = {b"\x28\xb5\x2f\xfd": ".zst", b"BZh": ".bz2", b"\x1f\x8b": ".gz"}
_HEADER_LINE = re.compile(rb'^[ \t]*\[\w+[ \t]+"', re.MULTILINE)


class Skip(Exception):
    """A game or document that cannot be used: `reason` is what the manifest counts by, `detail` is for its examples."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class Chunk(NamedTuple):
    """Whole games or documents of input number `file`, written as `kind` says (for games PGN, or one a line).
    `origin`: what documents that do not name their source go by."""

    file: int
    kind: str
    data: bytes
    origin: str = ""


def discover(inputs: Sequence[str | Path], kinds: Mapping[str, str] = KINDS) -> tuple[list[str], int]:
    """The files behind `inputs`, folders searched in sorted order, and how many other files those hold. `kinds`: the
    endings of known files, without that of their packing.

    Raises ValueError for a missing input, a file of an unknown kind, or a folder without a known one.
    """
    either, both = " or ".join(kinds), " and ".join(kinds)
    if not inputs:
        raise ValueError(f"no input given; name {either} files (plain, .zst, .bz2, .gz), folders, or -")
    files: list[str] = []
    ignored = 0
    for given in map(str, inputs):
        path = Path(given)
        if given == STDIN:
            files.append(STDIN)
        elif path.is_dir():
            inside = sorted(entry for entry in path.rglob("*") if entry.is_file())
            known = [str(entry) for entry in inside if kind_of_file(entry.name, kinds)]
            if not known:
                raise ValueError(f"no {either} file (also .zst, .bz2, .gz) in the folder {given}")
            files += known
            ignored += len(inside) - len(known)
        elif not path.exists():
            raise ValueError(f"no such file or folder: {given}; give {either} files, folders of them, or -")
        elif not kind_of_file(path.name, kinds):
            raise ValueError(f"{given}: unknown kind of file; known are {both}, plain or as .zst, .bz2, .gz")
        else:
            files.append(given)
    return files, ignored


def kind_of_file(name: str, kinds: Mapping[str, str] = KINDS) -> str | None:
    """What a file holds by its name; None for an unknown ending."""
    return kinds.get(Path(name.lower().removesuffix(_packing(name))).suffix)


def _packing(name: str) -> str:
    return next((packing for packing in PACKINGS if name.lower().endswith(packing)), "")


class Source:
    """One input being read; after the last chunk, `error`, `bytes` and `sha256` tell how it went.

    `sha256` and `bytes` are of the file as it is stored; `error` is None where all was well.
    """

    def __init__(self, name: str, number: int, on_bytes: Callable[[int], object]) -> None:
        self.name = name
        self.number = number
        self.bytes = 0
        self.sha256: str | None = None
        self.error: str | None = None
        self._on_bytes = on_bytes

    def chunks(self) -> Iterator[Chunk]:
        """Chunks of whole games, about half a megabyte each."""
        blocks = one_newline(self.unpacked())
        head = b""
        for block in blocks:
            head += block
            if len(head.strip()) > 2:
                break
        head = head.removeprefix(b"\xef\xbb\xbf")
        kind = kind_of_file(self.name) or ("lines" if re.match(rb"\s*;\s*1\.", head) else "pgn")
        buffer, skipping = head, False
        for block in blocks:
            buffer += block
            if skipping:
                start = _next_start(buffer, kind)
                buffer, skipping = (buffer[start:], False) if start else (buffer[-_LONGEST_MARK:], True)
            if skipping or len(buffer) < CHUNK_BYTES:
                continue
            cut = _last_start(buffer, kind)
            if cut:
                yield Chunk(self.number, kind, buffer[:cut])
                buffer = buffer[cut:]
            elif len(buffer) > 2 * MAX_GAME_BYTES:
                # A worker reports it as too long; what is still to come of it goes unread.
                yield Chunk(self.number, kind, buffer)
                buffer, skipping = buffer[-_LONGEST_MARK:], True
        if skipping:
            return
        if self.error:
            # The game at the break may lack its end, and half a game would pass for a whole one.
            buffer = buffer[: _last_start(buffer, kind)]
        if buffer.strip():
            yield Chunk(self.number, kind, buffer)

    def about(self, finished: bool) -> dict[str, Any]:
        """The manifest's entry of this input; size and hash are null for one that was read in part."""
        if not finished:
            return {"file": self.name, "bytes": None, "sha256": None}
        return {"file": self.name, "bytes": self.bytes, "sha256": self.sha256}

    def stored(self) -> Iterator[bytes]:
        """The file as it is stored, block by block."""
        digest = hashlib.sha256()
        file: BinaryIO = sys.stdin.buffer if self.name == STDIN else open(self.name, "rb")  # noqa: SIM115
        try:
            while data := file.read(_READ_BYTES):
                digest.update(data)
                self.bytes += len(data)
                self._on_bytes(len(data))
                yield data
            self.sha256 = digest.hexdigest()
        finally:
            if self.name != STDIN:
                file.close()

    def unpacked(self) -> Iterator[bytes]:
        """The content; sets `error` and ends where the stream cannot be read on."""
        stored = self.stored()
        try:
            first = next(stored, b"")
            packing = _packing(self.name)
            if self.name == STDIN:
                packing = next((p for magic, p in _MAGIC.items() if first.startswith(magic)), "")
            if not packing:
                yield first
                yield from stored
                return
            stream: Any = None
            for data in _then(first, stored):
                # One file may be several compressed streams in a row.
                while data:
                    stream = stream or _decompressor(packing)
                    yield stream.decompress(data)
                    data = stream.unused_data if stream.eof else b""
                    stream = None if stream.eof else stream
            if stream is not None:
                self.error = f"truncated after {self.bytes} bytes"
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            self.error = f"cannot be read on after {self.bytes} bytes: {error}"
            for _ in stored:  # for the checksum of the whole file
                pass


def _then(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _decompressor(packing: str) -> Any:
    if packing == ".zst":
        # Files packed with --long=31 need a window larger than the default.
        return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
    return bz2.BZ2Decompressor() if packing == ".bz2" else zlib.decompressobj(wbits=31)


def one_newline(blocks: Iterator[bytes]) -> Iterator[bytes]:
    r"""The same text with \n for \r\n and \r."""
    held = b""
    for block in blocks:
        block = held + block
        held = b"\r" if block.endswith(b"\r") else b""
        block = block.removesuffix(b"\r") if held else block
        yield block.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in block else block
    if held:
        yield b"\n"


def _next_start(buffer: bytes, kind: str) -> int:
    """Where the first game after a broken one begins; 0 when none does."""
    if kind == "lines":
        return buffer.find(b"\n") + 1
    header = _HEADER_LINE.search(buffer, 1)
    return header.start() if header else buffer.find(b"\n\n") + 1


def _last_start(buffer: bytes, kind: str) -> int:
    """Where the last game of `buffer` begins; 0 when no start but the first is seen."""
    if kind == "lines":
        return buffer.rfind(b"\n") + 1
    start = buffer.rfind(b"\n[Event ") + 1
    if start:
        return start
    last = previous_end = -1
    for header in _HEADER_LINE.finditer(buffer):
        line_end = buffer.find(b"\n", header.end())
        if previous_end >= 0 and buffer[previous_end : header.start()].strip():
            last = header.start()
        previous_end = line_end if line_end >= 0 else len(buffer)
    if previous_end >= 0:
        return max(last, 0)
    # Bare movetext: a blank line is all there is between games.
    return buffer.rfind(b"\n\n") + 2 if b"\n\n" in buffer.rstrip(b"\n") else 0
