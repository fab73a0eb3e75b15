"""Input files as streams of chunks: which files there are, how they are compressed, and how their text is encoded.

Whatever the size of an input, only a few chunks of it are in memory. Where a stream is cut never depends on the number
of workers. A stream that breaks (truncated or damaged) gives the sequences before the break; the break is reported.
"""

from __future__ import annotations

import bz2
import codecs
import hashlib
import json
import shlex
import sys
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import zstandard

STDIN = "-"
PACKINGS = (".zst", ".bz2", ".gz")

MOST_NOT_TEXT = 0.1
"""Share of characters that are no UTF-8 text, at most, at the beginning of a file of documents. Texts in Western
European languages and Latin-1 stay below it; they are read, and counted."""

_READ_BYTES = 1 << 16
_RARE = [("\u3400", "\u4dbf"), ("\ua000", "\uabff"), ("\uff61", "\uff9f")]
_CONTROLS = [code for code in range(1, 32) if code not in b"\b\t\n\v\f\r\x1b"]
CHUNK_BYTES = 1 << 19
_HEAD_BYTES = 1 << 12
# The mark of UTF-16LE begins that of UTF-32LE.
_MARKS = {
    codecs.BOM_UTF8: "UTF-8",
    codecs.BOM_UTF32_LE: "UTF-32LE",
    codecs.BOM_UTF32_BE: "UTF-32BE",
    codecs.BOM_UTF16_LE: "UTF-16LE",
    codecs.BOM_UTF16_BE: "UTF-16BE",
}
_UNPACK = {".zst": "zstd -dc", ".bz2": "bzip2 -dc", ".gz": "gzip -dc"}
_MAGIC = {b"\x28\xb5\x2f\xfd": ".zst", b"BZh": ".bz2", b"\x1f\x8b": ".gz"}


class Skip(Exception):
    """A sequence that cannot be used: the manifest counts by `reason`, and `detail` is for its examples."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class Chunk(NamedTuple):
    """Whole sequences of input number `file`, in the format `kind`. `origin`: source of sequences that do not name
    theirs."""

    file: int
    kind: str
    data: bytes
    origin: str = ""


def discover(inputs: str | Path | Sequence[str | Path], kinds: Mapping[str, str]) -> tuple[list[str], int]:
    """The files behind `inputs`, folders searched in sorted order, and how many other files those hold. `kinds`: ending
    of a file, without that of its compression -> its format.

    ValueError for a missing input, a file of an unknown kind, or a folder without a file of a known kind.
    """
    either, both = " or ".join(kinds), " and ".join(kinds)
    if isinstance(inputs, str | Path):
        inputs = [inputs]
    if not inputs:
        raise ValueError(f"there is no input; pass {either} files (plain, .zst, .bz2, .gz), folders, or -")
    files: list[str] = []
    ignored = 0
    for name in map(str, inputs):
        path = Path(name)
        if name == STDIN:
            files.append(STDIN)
        elif path.is_dir():
            inside = sorted(entry for entry in path.rglob("*") if entry.is_file())
            known = [str(entry) for entry in inside if kind_of_file(entry.name, kinds)]
            if not known:
                raise ValueError(f"no {either} file (also .zst, .bz2, .gz) in the folder {name}")
            files += known
            ignored += len(inside) - len(known)
        elif not path.exists():
            raise ValueError(f"no such file or folder: {name}; pass {either} files, folders of them, or -")
        elif not kind_of_file(path.name, kinds):
            raise ValueError(f"{name}: unknown kind of file; expected {both}, plain or as .zst, .bz2, .gz")
        else:
            files.append(name)
    return files, ignored


def made_of(folder: Path, names: Sequence[str], out: Path) -> bool:
    """Whether the prepared data in `folder` was made of these files as they are now. Standard input and datasets are
    compared by name, and files by size and sha256, because they may have moved.

    ValueError if `folder` holds the data of other files and `out` a training or fit that read it.
    """
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return False
    known = json.loads(manifest.read_text(encoding="utf-8")).get("inputs", [])
    if len(known) == len(names) and all(map(_is_input, known, names)):
        return True
    if any(out.rglob("metrics.jsonl")):
        raise ValueError(
            f"{out} was made with other data: {', '.join(each['file'] for each in known[:3])}, not as now "
            f"{', '.join(names[:3])}. Give the same data to resume, or another --out"
        )
    return False


def _is_input(known: Mapping[str, Any], name: str) -> bool:
    """Whether an entry of a manifest is of this file."""
    path = Path(name)
    if not path.is_file():
        return bool(known["file"] == name)
    if known["bytes"] != path.stat().st_size:
        return False
    with path.open("rb") as file:
        return bool(known["sha256"] == hashlib.file_digest(file, "sha256").hexdigest())


def kind_of_file(name: str, kinds: Mapping[str, str]) -> str | None:
    """The format of a file by its name; None for an unknown ending."""
    return kinds.get(Path(name.lower().removesuffix(packing_of(name))).suffix)


def packing_of(name: str) -> str:
    """The ending that names the compression of a file; "" for a plain file."""
    return next((packing for packing in PACKINGS if name.lower().endswith(packing)), "")


class InputFile:
    """One input file that is being read. After the last chunk `bytes` and `sha256` describe the file as it is stored,
    and `error` says what broke the stream, or is None. `needs_utf8`: whether a file is refused that begins with much
    that is not UTF-8 text (games need not be: what other encodings spell is in names and comments)."""

    needs_utf8: ClassVar[bool] = False

    def __init__(self, name: str, number: int, on_bytes: Callable[[int], object]) -> None:
        self.name = name
        self.number = number
        self.bytes = 0
        self.sha256: str | None = None
        self.error: str | None = None
        self._on_bytes = on_bytes

    def chunks(self) -> Iterator[Chunk]:
        """Chunks of whole sequences, about `CHUNK_BYTES` each; where a stream may be cut depends on the domain."""
        raise NotImplementedError

    def about(self, finished: bool) -> dict[str, Any]:
        """The entry of this input in the manifest; size and hash are null for a file that was read in part."""
        if not finished:
            return {"file": self.name, "bytes": None, "sha256": None}
        return {"file": self.name, "bytes": self.bytes, "sha256": self.sha256}

    def stored(self) -> Iterator[bytes]:
        """The bytes of the file as it is stored, in blocks."""
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

    def text(self) -> Iterator[bytes]:
        """The text of the file as UTF-8 without a byte order mark, in blocks; a mark of UTF-16 or UTF-32 says how it is
        decoded. Where the stream breaks it ends, and `error` is set. ValueError for a file that begins with many NULs,
        as binary data and UTF-16 without a mark do, and, where `needs_utf8`, for one that begins with much else that is
        no UTF-8 text."""
        blocks = self.unpacked()
        head = b""
        for block in blocks:
            head += block
            if len(head) >= _HEAD_BYTES:
                break
        mark, encoding = next((entry for entry in _MARKS.items() if head.startswith(entry[0])), (b"", ""))
        stream = chain((head[len(mark) :],), blocks)
        if not encoding:
            self._refuse_other_encodings(head)
        if encoding in ("", "UTF-8"):
            yield from stream
            return
        # Halves of surrogate pairs become bytes that are not UTF-8, which are counted where documents are read.
        decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        try:
            for block in stream:
                yield decoder.decode(block).encode("utf-8", "surrogatepass")
            decoder.decode(b"", True)
        except UnicodeDecodeError as error:
            self.error = f"is not {encoding} as its mark says: {error.reason}"
            for _ in blocks:  # for the checksum of the whole file
                pass

    def _refuse_other_encodings(self, head: bytes) -> None:
        encoding, looks = _unmarked_encoding(head), "has many NUL bytes"
        if encoding is None and self.needs_utf8 and (share := _not_text(head)) > MOST_NOT_TEXT:
            encoding = _without_nuls(head)
            looks = f"is not UTF-8: {share:.0%} of its beginning cannot be read so"
        if encoding is None:
            return
        packing = packing_of(self.name)
        plain = self.name[: len(self.name) - len(packing)]
        name, new = shlex.quote(self.name), shlex.quote(f"{Path(plain).stem}.utf8{Path(plain).suffix}")
        convert = f"iconv -f {encoding or 'ENCODING'} -t UTF-8"
        if self.name == STDIN:
            command = f"... | {convert} | glassmoe ..."
        else:
            command = f"{_UNPACK[packing]} {name} | {convert} > {new}" if packing else f"{convert} {name} > {new}"
        if encoding:
            looks = f"looks like {encoding} without a byte order mark"
        raise ValueError(f"{self.name} {looks}; expected text in UTF-8: convert it with {command}")

    def unpacked(self) -> Iterator[bytes]:
        """The decompressed bytes, in blocks. Where the stream breaks it ends, and `error` is set."""
        stored = self.stored()
        try:
            first = next(stored, b"")
            packing = packing_of(self.name)
            if self.name == STDIN:
                packing = next((p for magic, p in _MAGIC.items() if first.startswith(magic)), "")
            if not packing:
                yield first
                yield from stored
                return
            stream: Any = None
            for data in chain((first,), stored):
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


def _decompressor(packing: str) -> Any:
    if packing == ".zst":
        # Files packed with --long=31 need a window larger than the default.
        return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
    return bz2.BZ2Decompressor() if packing == ".bz2" else zlib.decompressobj(wbits=31)


def _unmarked_encoding(head: bytes) -> str | None:
    """The encoding that the NULs at the beginning of a file without a mark tell; "" for NULs of no encoding, and None
    where there are few."""
    count = head.count(0)
    if len(head) < 4 or count < 2:
        return None
    by_place = [head[place::4].count(0) * 4 / len(head) for place in range(4)]
    if min(by_place[2:]) > 0.9 > by_place[0]:
        return "UTF-32LE"
    if min(by_place[:2]) > 0.9 > by_place[3]:
        return "UTF-32BE"
    share, odd = count / len(head), head[1::2].count(0) / count
    # Text without spaces, such as Chinese, has few NULs, but always at places of the same parity.
    if not 0.05 < odd < 0.95 and (share > 0.2 or (count >= 8 and share > 0.01)):
        return "UTF-16LE" if odd > 0.5 else "UTF-16BE"
    return "" if share > 0.4 else None


def _not_text(head: bytes) -> float:
    """The share of the characters at the beginning of a file that are no UTF-8, or control characters that texts do not
    have."""
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(head)
    bad = text.count("\N{REPLACEMENT CHARACTER}") - head.count("\N{REPLACEMENT CHARACTER}".encode())
    bad += sum(text.count(chr(code)) for code in _CONTROLS)
    return bad / len(text) if bad > 1 else 0.0


def _without_nuls(head: bytes) -> str:
    """UTF-16LE or BE for text of letters outside ASCII without spaces; "" for what is neither."""
    if any(_letters(head, name) > 0.9 for name in ("shift_jis", "euc_jp", "euc_kr", "gb18030", "big5")):
        return ""
    even, odd = Counter(head[::2]), Counter(head[1::2])
    # In an encoding of one byte a letter, letters are as frequent at even places as at odd ones.
    if sum(abs(even[byte] - odd[byte]) for byte in range(256)) < 0.6 * len(head) / 2:
        return ""
    # Letters of one text are of few blocks of 256: the higher of both bytes has fewer values.
    likely = [each for each in (("UTF-16LE", len(odd)), ("UTF-16BE", len(even))) if _letters(head, each[0]) > 0.9]
    return min(likely, key=lambda each: each[1])[0] if likely else ""


def _letters(head: bytes, encoding: str) -> float:
    """The share of letters, digits, marks and spaces in what an encoding makes of the beginning of a file; 0 where it
    is not that encoding. Rare letters are not counted: Yi, rare ideographs, and narrow katakana, as which Shift
    JIS reads many bytes."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return 0.0
    usual = [each for each in text if not any(first <= each <= last for first, last in _RARE)]
    return sum(unicodedata.category(each)[0] in "LMNPZ" or each in "\n\r\t" for each in usual) / max(1, len(text))


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
