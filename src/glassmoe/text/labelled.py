"""Texts with labels, for probing: from a `.jsonl` file (plain, .zst, .gz or .bz2) with `text` and `label`, from a
dataset by its id or by its name in the Mixture of Decoders paper, or generated here (`surnames`).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from glassmoe.data.sources import InputFile, kind_of_file, one_newline

LEAST = 10
"""Labels with fewer examples are left out, because one of several splits would hold one example or none."""
SURNAMES = 4000


@dataclass(frozen=True)
class Labelled:
    """`texts` and their `labels`. `last`: whether the end of a text matters instead of its beginning. `token`: whether
    the label belongs to the last token. `left_out`: labels with fewer than `LEAST` examples -> number of examples."""

    name: str
    texts: list[str]
    labels: list[str]
    last: bool = False
    token: bool = False
    left_out: dict[str, int] | None = None


class Dataset(NamedTuple):
    """The dataset of a task: its id, configuration and split, and a function from a row to text and label."""

    id: str
    config: str | None
    split: str
    read: Callable[[dict[str, Any]], tuple[str, Any]]
    last: bool = False


TASKS = {
    "ag_news": Dataset("fancyzhx/ag_news", None, "test", lambda row: (row["text"], row["label"])),
    "github-code": Dataset(
        "codeparrot/github-code", None, "train", lambda row: (row["code"], row["language"]), last=True
    ),
    "amazon": Dataset("fancyzhx/amazon_polarity", None, "test", lambda row: (row["content"], row["label"])),
    "europarl": Dataset("Helsinki-NLP/europarl", "all", "train", lambda row: (row["text"], row["language"])),
    "bias_in_bios": Dataset("LabHC/bias_in_bios", None, "test", lambda row: (row["hard_text"], row["profession"])),
}
"""The sample-level tasks of the paper (Oldfield et al. 2025). Ids and columns are those of the hub's pages; the
datasets themselves were not available to test this."""
ENDINGS = {
    "slavic": ("ov", "ovich", "enko", "sky"),
    "nordic": ("sson", "gaard", "strom", "dottir"),
    "italian": ("etti", "ucci", "ello", "oni"),
    "irish": ("nagh", "gan", "nell", "ley"),
    "armenian": ("yan", "osyan", "unts", "ouni"),
}
"""Origin -> endings of the generated surnames."""
FIRST = ("Alex", "Robin", "Kim", "Sam", "Max", "Nora", "Lea", "Anna", "Maria", "Eva", "Daniel", "David", "Peter")


def labelled(name: str | Path, limit: int | None = None, *, last: bool = False, token: bool = False) -> Labelled:
    """The task called `name`: a file, `surnames`, a name of `TASKS`, or the id of a dataset with columns `text` and
    `label` (which needs `datasets` and the network). `limit`: largest number of examples. `last`, `token`: as in
    `Labelled`. ValueError for a file that is missing or lacks a field, and for fewer than two labels with `LEAST`
    examples."""
    name = str(name)
    if name == "surnames":
        return checked(name, surnames(limit or SURNAMES), last=True, token=True)
    if Path(name).exists() or kind_of_file(name, {".jsonl": "jsonl"}):
        return checked(Path(name).name.partition(".")[0], _read(Path(name), limit), last=last, token=token)
    known = TASKS.get(name, Dataset(name, None, "test", lambda row: (row["text"], row["label"])))
    return checked(name, _download(known, limit), last=last or known.last, token=token)


def checked(name: str, pairs: list[tuple[str, str]], *, last: bool, token: bool) -> Labelled:
    """The pairs as a task, without labels that have fewer than `LEAST` examples. ValueError for fewer than two
    labels."""
    counts = Counter(label for _, label in pairs)
    usable = [pair for pair in pairs if counts[pair[1]] >= LEAST]
    left_out = {label: count for label, count in sorted(counts.items()) if count < LEAST}
    if len(counts) - len(left_out) < 2:
        held = ", ".join(f"{label!r} ({count})" for label, count in counts.most_common(5)) or "none"
        raise ValueError(
            f"{name} has {len(pairs)} examples with the labels {held}; a task needs two labels with at least {LEAST} "
            f"examples each"
        )
    return Labelled(name, [text for text, _ in usable], [label for _, label in usable], last, token, left_out)


def _read(path: Path, limit: int | None) -> list[tuple[str, str]]:
    if not path.is_file():
        raise ValueError(f"there is no file {path}; pass a .jsonl of text and label, or the name of a task")
    source = InputFile(str(path), 0, lambda _: None)
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(_lines(source), start=1):
        if limit is not None and len(pairs) >= limit:
            break
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError:
            raise ValueError(f"line {number} of {path} is not JSON; a task has one object a line") from None
        if not isinstance(values, dict) or not isinstance(values.get("text"), str):
            raise ValueError(f"line {number} of {path} has no text; every line of a task needs text and label")
        if values.get("label") is None or isinstance(values["label"], dict | list):
            raise ValueError(f"line {number} of {path} has no label; every line of a task needs text and label")
        pairs.append((values["text"], str(values["label"])))
    if source.error:
        raise ValueError(f"{path} {source.error}")
    return pairs


def _lines(source: InputFile) -> Any:
    held = b""
    for block in one_newline(source.text()):
        *whole, held = (held + block).split(b"\n")
        yield from whole
    yield held


def _download(known: Dataset, limit: int | None) -> list[tuple[str, str]]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise ValueError(
            f"{known.id} is not a file, and reading it from the hub needs datasets: pip install datasets, or pass "
            f"a .jsonl"
        ) from None
    try:
        rows = datasets.load_dataset(known.id, known.config, split=known.split, streaming=True)
        pairs = []
        for row in rows if limit is None else rows.take(limit):
            text, label = known.read(row)
            pairs.append((text, str(label)))
    except KeyError as error:
        raise ValueError(f"the dataset {known.id} has no column {error}; a task needs text and label") from None
    except Exception as error:  # what datasets raises depends on where it stumbles
        reason = " ".join(str(error).split()[:30])
        raise ValueError(f"cannot read the dataset {known.id}: {reason}; pass an id of the hub or a file") from None
    return pairs


def surnames(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """`count` generated full names, no surname twice, with the origin that the ending of the surname suggests. They are
    for probing the last token, like the surname tasks of Gurnee et al. (2023), which use real people; these names
    belong to nobody."""
    draw = random.Random(seed)
    pairs: dict[str, tuple[str, str]] = {}
    while len(pairs) < count:
        stem = "".join(draw.choice("bdfgklmnprstv") + draw.choice("aeiou") for _ in range(draw.choice((1, 2, 2))))
        origin = draw.choice(sorted(ENDINGS))
        surname = (stem + draw.choice("klmnrst") + draw.choice(ENDINGS[origin])).title()
        pairs.setdefault(surname, (f"{draw.choice(FIRST)} {surname}", origin))
    return list(pairs.values())
