"""Text for measuring perplexity: files, or the corpora that papers use, read as they are.

A text is not changed: no detokenisation, no lower case, no stripping (line ends become \\n; bytes that are not UTF-8
become U+FFFD, and their documents are counted). A `.jsonl` or `.parquet` file holds a document a line or row; any other
file is one document, or several with `<|endoftext|>` between them, and of LAMBADA one passage a line.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from glassmoe.data.origins import stem
from glassmoe.data.sources import Skip, one_newline, packing_of

from .documents import TextFile, documents
from .tokens import SEPARATOR

OPENWEBTEXT_DOCUMENTS = 400
"""OpenWebText has no test split, so its first documents are used without a file."""


@dataclass(frozen=True)
class Known:
    """A corpus with a name: its id, configuration and split for the package `datasets`, what an entry there is, and a
    description for the report."""

    dataset: str
    config: str | None
    split: str
    entry: Literal["line", "document", "passage"]
    about: str


_WIKITEXT = "raw test text in one piece, not detokenised: ` @-@ ` and spaces before commas are left as they are"
KNOWN = {
    "wikitext2": Known("Salesforce/wikitext", "wikitext-2-raw-v1", "test", "line", _WIKITEXT),
    "wikitext103": Known("Salesforce/wikitext", "wikitext-103-raw-v1", "test", "line", _WIKITEXT),
    "lambada": Known("EleutherAI/lambada_openai", "default", "test", "passage", "passages as they are written"),
    "openwebtext": Known("Skylion007/openwebtext", None, "train", "document", "documents as they are written"),
}


@dataclass(frozen=True)
class EvaluationText:
    """Documents in their order, and what was read. `sha256`: of the file as it is stored, or of the texts that
    `datasets` returned. `passages`: whether the last word of each document is measured too, as in LAMBADA. `skipped`:
    number of entries left out, by reason; `not_utf8`: number of documents with bytes that are not UTF-8."""

    name: str
    texts: Sequence[str]
    source: str
    sha256: str
    about: str
    passages: bool = False
    skipped: dict[str, int] = field(default_factory=dict)
    not_utf8: int = 0


def read_evaluation_texts(on: str, text_field: str = "text") -> list[EvaluationText]:
    """The texts that `on` names, separated by commas: known corpora, files, or `NAME=FILE`. `text_field`: field of
    .jsonl and .parquet that holds the text. Only a name without a file uses the network. ValueError when a text cannot
    be read."""
    texts = [_read(part.strip(), text_field) for part in on.split(",") if part.strip()]
    names = Counter(text.name for text in texts)
    if not texts:
        raise ValueError(f"--on takes names ({', '.join(KNOWN)}) or files, separated by commas; got {on!r}")
    if max(names.values()) > 1:
        raise ValueError(f"--on names {names.most_common(1)[0][0]} twice; name each text differently, as NAME=FILE")
    return texts


def _read(named: str, text_field: str) -> EvaluationText:
    name, equals, file = named.partition("=")
    if not equals:
        if named in KNOWN:
            return _from_datasets(named, KNOWN[named])
        name, file = stem(named) or "text", named
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"--on {named}: a name has letters, digits, `_`, `.` and `-`; pass the text as NAME=FILE")
    if not Path(file).is_file():
        raise ValueError(f"--on {named}: there is no file {file}; pass a file, NAME=FILE, or one of {', '.join(KNOWN)}")
    return _from_file(name, Path(file), text_field)


def _from_file(name: str, path: Path, text_field: str) -> EvaluationText:
    known = KNOWN.get(name)
    passages = known is not None and known.entry == "passage"
    source = TextFile(str(path), 0, lambda _: None, text_field)
    texts: list[str] = []
    skipped: Counter[str] = Counter()
    repaired = 0
    for text, changed in _entries(source, path, passages, text_field):
        if isinstance(text, Skip):
            skipped[text.reason] += 1
        else:
            texts.append(text)
            repaired += changed
    if source.error:
        raise ValueError(f"{path} {source.error}; an incomplete text is not measured: pass the whole file")
    if not texts:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in skipped.items())
        raise ValueError(f"{path} holds no text to measure on" + (f": {reasons}" if reasons else ""))
    about = known.about if known else "text as it is written"
    assert source.sha256 is not None
    return EvaluationText(name, texts, path.name, source.sha256, about, passages, dict(skipped), repaired)


def _entries(source: TextFile, path: Path, passages: bool, text_field: str) -> Iterator[tuple[str | Skip, bool]]:
    ending = Path(path.name.lower().removesuffix(packing_of(path.name))).suffix
    if ending in (".jsonl", ".parquet", ".arrow"):
        for chunk in source.chunks():
            yield from ((each.text, each.repaired) for each in documents(chunk, text_field))
        return
    raw = b"".join(one_newline(source.text()))
    for part in raw.split(b"\n" if passages else SEPARATOR.encode()):
        text = part.decode("utf-8", "replace")
        if text.strip():
            yield text, text.encode("utf-8") != part
        elif not passages and raw.strip():
            yield Skip("empty"), False


def _from_datasets(name: str, known: Known) -> EvaluationText:
    try:
        package: Any = importlib.import_module("datasets")
    except ImportError:
        raise ValueError(
            f"{name} is read with the package datasets, which is not installed: pip install datasets, or pass a file "
            f"as {name}=FILE"
        ) from None
    streamed = known.entry == "document"
    try:
        rows: Iterable[dict[str, Any]] = package.load_dataset(
            known.dataset, known.config, split=known.split, streaming=streamed
        )
        entries = [str(row["text"]) for row, _ in zip(rows, _limit(known), strict=False)]
    except Exception as error:  # without a network it raises errors of several kinds
        reason = " ".join(str(error).split()[:30]) or type(error).__name__
        raise ValueError(
            f"cannot read {name} ({known.dataset}): {reason}; check the network, or pass a file as {name}=FILE"
        ) from None
    # A blank line of the original file is an empty row there.
    texts = ["".join(each or " \n" for each in entries)] if known.entry == "line" else [e for e in entries if e.strip()]
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
    where = f"{known.dataset} ({', '.join(each for each in (known.config, known.split) if each)})"
    if streamed:
        where += f", the first {len(texts)} documents"
    skipped = {} if known.entry == "line" or len(texts) == len(entries) else {"empty": len(entries) - len(texts)}
    return EvaluationText(name, texts, where, digest, known.about, known.entry == "passage", skipped)


def _limit(known: Known) -> Iterable[int]:
    return range(OPENWEBTEXT_DOCUMENTS if known.entry == "document" else 1 << 40)
