"""Documents from files (.jsonl, .txt, .parquet, .arrow) and datasets to a prepared corpus of text.

A .jsonl file holds one JSON object a line; its field `text` (or another one) is a document. A .txt file is one
document, or several with `<|endoftext|>` between them; line ends become `\n`, and those around a document are dropped.
A document that cannot be used is counted with its reason and does not stop the preparation. Bytes that are not UTF-8
are replaced by U+FFFD, and the documents that had some are counted; UTF-16 and UTF-32 are read by their byte order
marks. Every document keeps the name of its source (`origins.py`).
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glassmoe.console import bar, say
from glassmoe.data.origins import FIELD, LONGEST_NAME, NO_SOURCE, SourceNumbers, source_in, stem
from glassmoe.data.parallel import count_workers
from glassmoe.data.prepared import PreparedCorpus
from glassmoe.data.sources import CHUNK_BYTES, STDIN, Chunk, InputFile, Skip, discover, kind_of_file, one_newline
from glassmoe.data.tally import ChunkResult, Tally, gather
from glassmoe.data.tokens import TokenKind
from glassmoe.data.writer import CorpusWriter, PackedSequences, check_target, hash_texts, of_validation

from .tables import TableError, fingerprint, is_dataset, require_packages, table_lines
from .tokens import (
    LEAST_IDS,
    SEPARATOR,
    Encode,
    cut_text,
    kind_and_encoder,
    load_tokenizer,
    train_tokenizer,
)

KINDS = {".jsonl": "jsonl", ".txt": "documents", ".parquet": "parquet", ".arrow": "arrow"}
TABLES = ("parquet", "arrow", "dataset")
"""Kinds of input that are no text."""
MAX_DOCUMENT_BYTES = 1 << 27
"""A longer line of .jsonl is skipped; a longer document of .txt becomes several."""

SAMPLE_BYTES = 50_000_000
"""Largest amount of text that a tokenizer is trained on, in bytes."""

_SAMPLE_CHARACTERS = 1 << 20
_DETAIL_CHARS = 80
_MARKS = {"jsonl": b"\n", "documents": SEPARATOR.encode()}


def prepare_text(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    tokenizer: str | Path,
    field: str = "text",
    source_field: str | None = None,
    workers: int | None = None,
    valid_share: float = 0.01,
    max_documents: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    seed: int = 0,
) -> PreparedCorpus:
    """Prepares the corpus `out` from files of documents.

    inputs: .jsonl and .txt files, plain or as .zst, .bz2 or .gz, .parquet and .arrow files (with pyarrow), folders of
    them, `datasets:NAME` (`tables.py`), and `-` for standard input.
    tokenizer: `train:N` for a byte-level BPE of N ids that is trained on these documents, or the name or directory of a
    transformers tokenizer. It is trained on documents of the training split, drawn by `seed`: at most `SAMPLE_BYTES` in
    all and 2**20 characters of each.
    field: field of .jsonl and of tables that holds the text.
    source_field: field of .jsonl and of tables that names the source of a document; a document without a name there has
    the source `no source`. By default the source is the field `source`, or else the name of the file. Documents of .txt
    always have the name of the file.
    workers: number of processes (None: one a CPU); the result does not depend on it.
    max_documents: stop after this many usable documents, counted before duplicates are removed.

    ValueError for an input that is missing or of an unknown kind, for an `out` that already holds a corpus, for an
    unknown tokenizer, for a `source_field` that no document has or that has more than 65,535 values, and when no
    document can be used.
    """
    tokenizer = str(tokenizer)
    if max_documents is not None and max_documents < 1:
        raise ValueError(
            f"max_documents is {max_documents}; expected a number of documents of at least 1, or None for all"
        )
    workers = count_workers(workers)
    names, ignored = files_of(inputs)
    for name in names:
        if (table := "dataset" if is_dataset(name) else kind_of_file(name, KINDS)) in TABLES:
            require_packages(name, table)
    check_target(Path(out), valid_share, overwrite, "documents")
    are_files = not any(name == STDIN or is_dataset(name) for name in names)
    size = sum(Path(name).stat().st_size for name in names) if are_files else None
    if tokenizer.startswith("train:"):
        ids = _ids(tokenizer)
        if STDIN in names:
            raise ValueError(
                "--tokenizer train:N reads the text twice, but standard input can be read only once; save "
                "it to a file, or pass an existing tokenizer"
            )
        with bar(size, "reading for the tokenizer", "B", show=progress, lines=True, unit_scale=True) as shown:
            sources = [TextFile(name, number, shown.update, field) for number, name in enumerate(names)]
            texts = _sample(sources, field, valid_share, max_documents, seed)
        sampled = sum(len(text.encode("utf-8")) for text in texts)
        kind, encode = kind_and_encoder(train_tokenizer(texts, ids), SEPARATOR)
        if kind.size < ids:
            say(f"the text has nothing left to merge: the tokenizer has {kind.size} ids instead of {ids}")
        trained: dict[str, Any] = {"documents": len(texts), "bytes": sampled, "seed": seed}
        del texts
    else:
        (kind, encode), trained = kind_and_encoder(*load_tokenizer(tokenizer)), {}
    numbers = SourceNumbers(source_field)
    new = CorpusWriter(out, kind, valid_share=valid_share, overwrite=overwrite, sources=numbers)
    with new as writer, bar(size, "preparing text", "B", show=progress, lines=True, unit_scale=True) as shown:
        sources = [TextFile(name, number, shown.update, field, source_field) for number, name in enumerate(names)]
        tally = Tally(names, "document")
        digest = str(kind.tokenizer_sha256)
        worker = (str(writer.tokenizer_file), digest)
        _keep_open(digest, kind, encode)
        read = partial(read_chunk, field=field, source_field=source_field, tokenizer=worker, start=kind.start_token)
        inputs_read = gather(writer, tally, sources, read, shown, workers, max_documents)
        if not writer.count:
            raise ValueError(
                f"no usable document in {', '.join(names)}: {tally.summary()}; pass .jsonl with a field "
                f"{field!r} (--field), .txt or .parquet"
            )
        if numbers.names == [NO_SOURCE] and source_field is not None:
            raise ValueError(
                f"--source-field {source_field}: no document names its source there (a text of at most {LONGEST_NAME} "
                "characters, or a whole number); pass a different field, or leave the option out to use file names"
            )
        return writer.finish(
            {
                "kind": "text",
                "synthetic": False,
                "tokenizer": {
                    "source": tokenizer,
                    "separator": kind.start_token,
                    "separator_id": kind.start,
                    "vocab_size": kind.size,
                    "sha256": digest,
                    **({"trained_on": trained} if trained else {}),
                },
                "field": field,
                "max_documents": max_documents,
                "packing": {
                    "dtype": {2: "uint16", 4: "uint32"}[kind.dtype.itemsize],
                    "document": "the separator, then the tokens of the text, special tokens in it read as text",
                },
                "skipped": tally.skipped,
                "not_utf8": tally.repaired,
                "ignored_files": ignored,
                **inputs_read,
            }
        )


def files_of(inputs: str | Path | Sequence[str | Path]) -> tuple[list[str], int]:
    """The files and datasets that are read, in order, and how many other files the folders hold."""
    listed = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    names: list[str] = []
    ignored = 0
    if not listed:
        discover([], KINDS)  # which says what to pass
    for each in listed:
        found, others = ([str(each)], 0) if is_dataset(str(each)) else discover(each, KINDS)
        names += found
        ignored += others
    return names, ignored


class TextFile(InputFile):
    """One input file of documents; see `InputFile`."""

    needs_utf8 = True

    def __init__(
        self, name: str, number: int, on_bytes: Any, field: str = "text", source_field: str | None = None
    ) -> None:
        super().__init__(name, number, on_bytes)
        self.field = field
        self.source_field = source_field or FIELD
        self.origin = stem(name)

    def chunks(self) -> Iterator[Chunk]:
        """Chunks of whole documents: about half a megabyte, or one longer document."""
        kind = "dataset" if is_dataset(self.name) else kind_of_file(self.name, KINDS)
        if kind in TABLES:
            yield from self._table(kind)
            return
        blocks = one_newline(self.text())
        head = b""
        for block in blocks:
            head += block
            if head.strip():
                break
        kind = kind or ("jsonl" if head.lstrip().startswith(b"{") else "documents")
        mark = _MARKS[kind]
        held: list[bytes] = []
        size, skipping = 0, False
        for block in chain((head,), blocks):
            if skipping:
                _, ended, block = block.partition(mark)  # only lines are skipped, and their mark is one byte
                if not ended:
                    continue
                skipping = False
            # A longer mark may be split over two blocks.
            before = held[-1][1 - len(mark) :] if held and len(mark) > 1 else b""
            complete = mark in before + block
            held.append(block)
            size += len(block)
            if not (complete and size >= CHUNK_BYTES) and size <= MAX_DOCUMENT_BYTES:
                continue
            data = b"".join(held)
            end = data.rfind(mark) + len(mark) if mark in data else 0
            if end:
                yield Chunk(self.number, kind, data[:end], self.origin)
            elif kind == "documents":
                yield Chunk(self.number, kind, data, self.origin)
            else:
                yield Chunk(self.number, "too long", b"")
                skipping = True
            held = [data[end:]] if end else []
            size = len(data) - end if end else 0
        data = b"" if skipping else b"".join(held)
        if self.error:
            # The document at the break may lack its end.
            data = data[: max(data.rfind(mark), 0)]
        if data.strip():
            yield Chunk(self.number, kind, data, self.origin)

    def _table(self, kind: str) -> Iterator[Chunk]:
        texts = table_lines(self.name, kind, self.field, self.source_field)
        try:
            if kind == "dataset":
                for text, self.bytes, self.sha256 in fingerprint(texts):
                    yield Chunk(self.number, "jsonl", text.encode(), self.origin)
                return
            for _ in self.stored():  # for the checksum: tables are not read from front to back
                pass
            for text in texts:
                yield Chunk(self.number, "jsonl", text.encode(), self.origin)
        except TableError as error:
            self.error = str(error)


def read_chunk(
    chunk: Chunk, *, field: str, source_field: str | None, tokenizer: tuple[str, str], start: str
) -> ChunkResult:
    """The usable documents of a chunk as packed token ids; runs in a worker. `tokenizer`: its file and the sha256 of
    the file."""
    unnamed = chunk.origin if source_field is None or chunk.kind != "jsonl" else NO_SOURCE
    encode, kind = _tokenizer(*tokenizer, start)
    texts: list[str] = []
    sources: list[str] = []
    numbers: list[int] = []
    repaired: list[int] = []
    skipped: list[tuple[int, str, str]] = []
    seen = 0
    for seen, document in enumerate(documents(chunk, field, source_field or FIELD), start=1):
        if isinstance(document.text, Skip):
            skipped.append((seen - 1, document.text.reason, document.text.detail))
            continue
        texts.append(document.text)
        sources.append(document.source or unnamed)
        numbers.append(seen - 1)
        if document.repaired:
            repaired.append(seen - 1)
    raw = [text.encode("utf-8") for text in texts]
    ids = encode(texts)
    packed = PackedSequences(
        tokens=np.concatenate([np.empty(0, kind.dtype), *ids]),
        lengths=np.fromiter(map(len, ids), dtype=np.uint32, count=len(ids)),
        hashes=hash_texts(raw),
        sizes=np.fromiter(map(len, raw), dtype=np.uint32, count=len(raw)),
        sources=sources,
    )
    return ChunkResult(chunk.file, packed, numbers, skipped, seen, repaired)


_OPENED: dict[tuple[str, str], tuple[Encode, TokenKind]] = {}
"""The last tokenizer of this process, by its sha256 and the start of documents: its encoder and kind of tokens."""


def _tokenizer(path: str, digest: str, start: str) -> tuple[Encode, TokenKind]:
    """The encoder of the tokenizer in a file and its kind of tokens, loaded once a process."""
    if (opened := _OPENED.get((digest, start))) is not None:
        return opened
    if multiprocessing.parent_process() is not None:
        # The cores are already shared by the processes.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    raw = Path(path).read_bytes()
    assert hashlib.sha256(raw).hexdigest() == digest
    kind, encode = kind_and_encoder(raw.decode("utf-8"), start)
    _keep_open(digest, kind, encode)
    return encode, kind


def _keep_open(digest: str, kind: TokenKind, encode: Encode) -> None:
    _OPENED.clear()
    _OPENED[digest, kind.start_token] = encode, kind


class Document(NamedTuple):
    """A document of a chunk."""

    text: str | Skip
    """Its text, or why it cannot be used."""
    repaired: bool = False
    """Whether bytes that are not UTF-8 were replaced in it."""
    source: str | None = None
    """Name of its source; None where it names none."""


def documents(chunk: Chunk, field: str, source_field: str = FIELD) -> Iterator[Document]:
    """The documents of a chunk. `field` and `source_field` as in `prepare_text`."""
    if chunk.kind == "too long":
        yield Document(Skip("too long", f"more than {MAX_DOCUMENT_BYTES} bytes in a line"))
        return
    parts = chunk.data.split(_MARKS[chunk.kind])
    if not parts[-1].strip():
        parts.pop()  # what follows the last mark
    for part in parts:
        if chunk.kind == "jsonl" and not part.strip():
            continue
        try:
            text, changed = _utf8(part)
            source = None
            if chunk.kind == "jsonl":
                text, source = _fields(text, field, source_field)
            else:
                text = text.strip("\n")
            if not text.strip():
                raise Skip("empty")
        except Skip as skip:
            yield Document(skip)
            continue
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if _halves(text) else text
        yield Document(whole, changed or whole != text, source)


def _utf8(raw: bytes) -> tuple[str, bool]:
    try:
        return raw.decode("utf-8"), False
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace"), True


def _halves(text: str) -> bool:
    """Whether a text has halves of surrogate pairs, which JSON can spell and UTF-8 cannot hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _fields(line: str, field: str, source_field: str) -> tuple[str, str | None]:
    """The text in a line of JSON and the source that it names. Raises Skip without a text."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise Skip("not JSON", ascii(line[:_DETAIL_CHARS])) from None
    if not isinstance(values, dict) or field not in values:
        held = f"has {', '.join(map(ascii, list(values)[:5]))}" if isinstance(values, dict) else "is not an object"
        raise Skip(f"no field {field!r}", held)
    text = values[field]
    if not isinstance(text, str):
        raise Skip(f"field {field!r} is not text", type(text).__name__)
    return text, source_in(values, source_field)


def _sample(
    sources: Sequence[TextFile], field: str, valid_share: float, max_documents: int | None, seed: int
) -> list[str]:
    """Documents of the training split to train a tokenizer on, in their order. A document is used when a hash of it and
    the seed is below a bound that leaves at most `SAMPLE_BYTES`, so that the choice does not depend on the order."""
    bound, total, usable = 2**64, 0, 0
    sample: list[tuple[int, bytes]] = []
    met: set[int] = set()
    key = seed.to_bytes(8, "little")
    for chunk in (chunk for source in sources for chunk in source.chunks()):
        texts = [document.text for document in documents(chunk, field) if isinstance(document.text, str)]
        if max_documents is not None:
            texts = texts[: max_documents - usable]
        usable += len(texts)
        raw = [text.encode("utf-8") for text in texts]
        hashes = hash_texts(raw)
        trained = ~of_validation(hashes, valid_share)
        for text, own, wanted in zip(texts, hashes.tolist(), trained.tolist(), strict=True):
            place = int.from_bytes(
                hashlib.blake2b(own.to_bytes(8, "little"), digest_size=8, key=key).digest(), "little"
            )
            if not wanted or place >= bound or place in met:
                continue
            part = cut_text(text, _SAMPLE_CHARACTERS)[0].encode("utf-8")
            sample.append((place, part))
            met.add(place)
            total += len(part)
            while total > SAMPLE_BYTES and len(sample) > 1:
                bound //= 2
                sample = [entry for entry in sample if entry[0] < bound] or [min(sample)]
                met = {place for place, _ in sample}
                total = sum(len(part) for _, part in sample)
        if usable == max_documents:
            break
    return [part.decode("utf-8") for _, part in sample]


def _ids(tokenizer: str) -> int:
    number = tokenizer.removeprefix("train:")
    size = int(number) if number.isdecimal() and len(number) < 10 else 0
    if size < LEAST_IDS:
        raise ValueError(
            f"--tokenizer train:N takes a number of ids, at least {LEAST_IDS} (every byte and the separator), such as "
            f"train:8192; got {tokenizer!r}"
        )
    return size
