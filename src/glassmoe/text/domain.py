"""Text as a domain: what `data/domains.py` asks of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glassmoe.data.domains import Domain
from glassmoe.data.prepared import largest
from glassmoe.data.tokens import TEXT

from .tokens import text_kind

SOURCES_SHOWN, MANY_SOURCES = 5, 1000
"""How many sources are named, and above how many a note suggests a field with fewer."""


def notes(manifest: Mapping[str, Any]) -> list[str]:
    """The tokenizer of a corpus, its sources, and documents with bytes that are not UTF-8."""
    tokenizer = manifest["tokenizer"]
    lines = [
        f"tokenizer {tokenizer['source']}: {tokenizer['vocab_size']:,} ids, documents begin with "
        f"{tokenizer['separator']}; {manifest['duplicates']:,} duplicates left out"
    ]
    if "trained_on" in tokenizer:
        trained = tokenizer["trained_on"]
        lines.append(f"it was trained on {trained['bytes']:,} bytes of {trained['documents']:,} documents")
    if "sources" in manifest:
        sources = manifest["sources"]
        totals = map(sum, zip(*sources["documents"].values(), strict=True))
        counts = dict(zip(sources["names"], totals, strict=True))
        many = "; sources that many documents share say more: --source-field" if len(counts) > MANY_SOURCES else ""
        noun = "source" if len(counts) == 1 else "sources"
        lines.append(f"{len(counts):,} {noun}: {largest(counts, SOURCES_SHOWN)}{many}")
    if manifest["not_utf8"]:
        lines.append(f"{manifest['not_utf8']:,} documents were not all UTF-8; what was not became U+FFFD")
    return lines


TEXT_DOMAIN = Domain(
    name="text",
    corpus="text",
    unit="documents",
    prepare=lambda _: "glassmoe data text FILES --tokenizer train:8192",
    tokenized=TEXT,
    kind_of_tokenizer=text_kind,
    notes=notes,
)
