"""What a preparation returns: where the corpus lies, how much is in it, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glassmoe.results import Result, markdown_table

from .domains import domain
from .tokens import TokenKind


@dataclass(frozen=True)
class SkippedExample(Result):
    """One sequence that could not be used."""

    file: str
    """File that it is in."""
    number: int
    """Its place in the file, from 1."""
    detail: str
    """What is wrong with it; empty where the reason says all."""


@dataclass(frozen=True)
class SkippedSequences(Result):
    """Sequences that could not be used for one reason."""

    reason: str
    """Why they could not be used."""
    count: int
    """How many there are."""
    examples: list[SkippedExample]
    """The first of them."""


@dataclass(frozen=True)
class PreparedCorpus(Result):
    """A corpus that was prepared. `to_dict` gives the manifest that lies in its folder."""

    path: Path
    """Folder of the corpus."""
    kind: TokenKind = field(repr=False)
    """Its kind of tokens."""
    sequences: dict[str, int]
    """Number of sequences (games, documents) in each split, duplicates removed."""
    tokens: dict[str, int]
    """Number of tokens in each split."""
    duplicates: int
    """Number of sequences that were left out because they repeat another one."""
    skipped: list[SkippedSequences]
    """Sequences that could not be used, by reason."""
    manifest: dict[str, Any] = field(repr=False)
    """Everything that manifest.json holds, with the entries of the domain."""

    def __fspath__(self) -> str:
        return str(self.path)

    def to_dict(self) -> dict[str, Any]:
        """The manifest."""
        return self.manifest

    def rows(self) -> list[dict[str, Any]]:
        """One row for each split: its sequences, its tokens, and of text its bytes."""
        sizes = self.manifest.get("bytes")
        rows = []
        for split, count in self.sequences.items():
            row: dict[str, Any] = {"split": split, self.kind.unit: count, f"{self.kind.one}s": self.tokens[split]}
            if sizes is not None:
                per_token = sizes[split] / self.tokens[split] if self.tokens[split] else None
                row |= {"bytes": sizes[split], "bytes a token": per_token}
            rows.append(row)
        return rows

    def table(self) -> str:
        """The rows, then what the domain says of them and what was skipped."""
        rows = self.rows()
        cells = [[f"{each:,}" if isinstance(each, int) else each for each in row.values()] for row in rows]
        owner, unit = domain(self.kind.domain), self.kind.unit.removesuffix("s")
        lines = [markdown_table(list(rows[0]), cells), "", *(owner.notes(self.manifest) if owner.notes else [])]
        for group in self.skipped:
            first = group.examples[0]
            where = f"{first.file}, {unit} {first.number}" + (f": {first.detail}" if first.detail else "")
            lines.append(f"skipped {group.count:,}: {group.reason} (first: {where})")
        return "\n".join([*lines, f"prepared {owner.corpus}: {self.path}"])


def prepared_corpus(path: Path, kind: TokenKind, manifest: dict[str, Any]) -> PreparedCorpus:
    """The result of a preparation from its manifest."""
    unit = kind.unit.removesuffix("s")
    return PreparedCorpus(
        path=path,
        kind=kind,
        sequences=manifest[kind.unit],
        tokens=manifest[kind.counted],
        duplicates=manifest["duplicates"],
        skipped=[
            SkippedSequences(
                reason,
                entry["count"],
                [SkippedExample(each["file"], each[unit], each["detail"]) for each in entry["examples"]],
            )
            for reason, entry in manifest.get("skipped", {}).items()
        ],
        manifest=manifest,
    )


def largest(counts: Mapping[str, int], shown: int) -> str:
    """The names with the largest counts, in words, and how many more there are."""
    order = sorted(counts, key=lambda name: -counts[name])
    named = ", ".join(f"{name} {counts[name]:,}" for name in order[:shown])
    return named + (f", and {len(order) - shown:,} more" if len(order) > shown else "")
