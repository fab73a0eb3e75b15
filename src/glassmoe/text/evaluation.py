"""Text that perplexity is measured on: files, or the corpora that papers name, read as they are.

Nothing is changed in a text: no detokenisation, no lower case, no stripping (line ends become \\n, what is not UTF-8
becomes U+FFFD and is counted). A `.jsonl` or `.parquet` file holds a document a line or row; any other file is one
document, or several with `<|endoftext|>` between them, and of LAMBADA one passage a line.
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
"""OpenWebText has no test split, so its first documents stand for it where no file is given."""


@dataclass(frozen=True)
class Known:
    """A corpus with a name: where the package `datasets` finds it, what an entry there is, and what is said of it."""

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
    """Documents in their order, and what was read. `sha256`: of the file as it is stored, or, of a corpus that
    `datasets` found, of its texts. `passages`: of LAMBADA, whose last words are measured too. `skipped`: entries left
    out, by reason; `not_utf8`: documents that had other bytes."""

    name: str
    texts: Sequence[str]
    source: str
    sha256: str
    about: str
    passages: bool = False
    skipped: dict[str, int] = field(default_factory=dict)
    not_utf8: int = 0


def read_evaluation_texts(on: str, text_field: str = "text") -> list[EvaluationText]:
    """The texts that `on` names, with commas: a known corpus, a file, or `NAME=FILE`. `text_field`: what holds the text
    in .jsonl and .parquet. Only a name without a file may touch the network. ValueError when one cannot be had."""
    found = [_read(each.strip(), text_field) for each in on.split(",") if each.strip()]
    names = Counter(text.name for text in found)
    if not found:
        raise ValueError(f"--on takes names ({', '.join(KNOWN)}) or files, with commas between them; got {on!r}")
    if max(names.values()) > 1:
        raise ValueError(f"--on names {names.most_common(1)[0][0]} twice; give each a name of its own, as NAME=FILE")
    return found


def _read(given: str, text_field: str) -> EvaluationText:
    name, equals, file = given.partition("=")
    if not equals:
        if given in KNOWN:
            return _from_datasets(given, KNOWN[given])
        name, file = stem(given) or "text", given
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"--on {given}: a text's name has letters, digits, `_`, `.` and `-`; give it as NAME=FILE")
    if not Path(file).is_file():
        raise ValueError(f"--on {given}: there is no file {file}; give a file, NAME=FILE, or one of {', '.join(KNOWN)}")
    return _from_file(name, Path(file), text_field)


def _from_file(name: str, path: Path, text_field: str) -> EvaluationText:
    known = KNOWN.get(name)
    passages = known is not None and known.entry == "passage"
    source = TextFile(str(path), 0, lambda _: None, text_field)
    texts: list[str] = []
    skipped: Counter[str] = Counter()
    repaired = 0
    for found, changed in _entries(source, path, passages, text_field):
        if isinstance(found, Skip):
            skipped[found.reason] += 1
        else:
            texts.append(found)
            repaired += changed
    if source.error:
        raise ValueError(f"{path} {source.error}; a text that is cut short is not measured: give the whole file")
    if not texts:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in skipped.items())
        raise ValueError(f"{path} holds no text to measure on" + (f": {reasons}" if reasons else ""))
    about = known.about if known else "text as it is written"
    assert source.sha256 is not None
    return EvaluationText(name, texts, path.name, source.sha256, about, passages, dict(skipped), repaired)


def _entries(source: TextFile, path: Path, passages: bool, text_field: str) -> Iterator[tuple[str | Skip, bool]]:
    ending = Path(path.name.lower().removesuffix(packing_of(path.name))).suffix
    if ending in (".jsonl", ".parquet"):
        for chunk in source.chunks():
            yield from ((each.text, each.repaired) for each in documents(chunk, text_field))
        return
    raw = b"".join(one_newline(source.unpacked())).removeprefix(b"\xef\xbb\xbf")
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
            f"{name} is read with the package datasets, which is not installed: pip install datasets, or give a file "
            f"as {name}=FILE"
        ) from None
    streamed = known.entry == "document"
    try:
        found: Iterable[dict[str, Any]] = package.load_dataset(
            known.dataset, known.config, split=known.split, streaming=streamed
        )
        entries = [str(row["text"]) for row, _ in zip(found, _limit(known), strict=False)]
    except Exception as error:  # what it raises without a network is not one kind
        reason = " ".join(str(error).split()[:30]) or type(error).__name__
        raise ValueError(
            f"{name} ({known.dataset}) could not be had: {reason}; check the network, or give a file as {name}=FILE"
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
