"""The end of the pass that gathers a store of examples (`gathering.py`): what each process or job has gathered, put
together to a store. No model is needed.

Legend: R rows, F features, B bins.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from glassmoe.atomic import write_text
from glassmoe.checksums import save_tensors, stream_tensors, with_checksum
from glassmoe.console import bar, say
from glassmoe.data.corpus import Corpus
from glassmoe.data.tokens import TEXT

from .examples import HALVES, PARTS, Arrays, Gatherer
from .rows import StoreRows, beginnings, drawn_windows, pieces
from .store import MANIFEST, FeatureStore, load_arrays

TOKENS_WRITTEN = 1 << 20
"""Tokens of rows that are written at once."""
PART = re.compile(r"part-([0-9a-f]{12})-(\d+)-of-(\d+)\.safetensors")


def rows_of(manifest: Mapping[str, Any], corpus: Corpus) -> StoreRows:
    """The rows that a pass reads."""
    cut = pieces if "cut" in manifest else beginnings
    return cut(corpus.split(manifest["split"]), manifest["row"], manifest["read"], manifest["seed"])


def name_of(manifest: Mapping[str, Any]) -> str:
    """Name of a pass: a hash of what is read and how."""
    return hashlib.sha256(identity_of(manifest).encode()).hexdigest()[:12]


def identity_of(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, sort_keys=True)


def empty_gatherer(manifest: Mapping[str, Any], rows: StoreRows) -> Gatherer:
    """What gathers the examples of a pass."""
    pool = drawn_windows(rows, manifest["window"], manifest["pool"], manifest["seed"])
    features, window = manifest["num_features"], manifest["window"]
    return Gatherer(features, window, manifest["each"], manifest["strongest"], pool, manifest["seed"])


def part_path(path: Path, manifest: Mapping[str, Any], which: int, of: int) -> Path:
    """File of what process or job `which` of `of` has gathered."""
    return path / f"part-{name_of(manifest)}-{which}-of-{of}.safetensors"


def save_part(
    path: Path, manifest: Mapping[str, Any], shard: tuple[int, int], gatherer: Gatherer, done: int, data: Path
) -> None:
    """Write what was gathered in the first `done` batches of a share."""
    header = {"done": str(done), "identity": identity_of(manifest), "data": str(data)}
    save_tensors(part_path(path, manifest, *shard), whole(gatherer.state()), save_file, header)


def load_part(path: Path, manifest: Mapping[str, Any], which: int, of: int) -> tuple[int, Arrays] | None:
    """What a process of this same pass has saved, and the number of batches that it holds; None where there is nothing
    that can be used."""
    file = part_path(path, manifest, which, of)
    try:
        header = _header(file)
        if header.get("identity") != identity_of(manifest):
            return None
        return int(header["done"]), load_arrays(file)
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError, LookupError) as error:
        say(f"{file} cannot be used and is gathered again: {error}")
        return None


def batches_of(manifest: Mapping[str, Any], which: int, of: int) -> range:
    """The first rows of the batches of a share: batch `which`, `which + of`, ..."""
    return range(which * manifest["batch_rows"], manifest["rows"], manifest["batch_rows"] * of)


def missing_parts(path: Path, manifest: Mapping[str, Any], of: int) -> list[int]:
    """The shares of a pass that are not complete."""
    missing = []
    for which in range(of):
        try:
            done = int(_header(part_path(path, manifest, which, of))["done"])
        except (OSError, SafetensorError, ValueError, LookupError):
            done = -1
        if done < len(batches_of(manifest, which, of)):
            missing.append(which)
    return missing


def merge_parts(path: Path, manifest: Mapping[str, Any], of: int, corpus: Corpus) -> FeatureStore:
    """Put the shares of a pass together, which must be complete (`missing_parts`)."""
    rows = rows_of(manifest, corpus)
    gatherer = empty_gatherer(manifest, rows)
    for which in range(of):
        part = load_part(path, manifest, which, of)
        if part is None or part[0] < len(batches_of(manifest, which, of)):
            raise ValueError(f"{part_path(path, manifest, which, of)} is not complete; gather this share again")
        gatherer.merge(part[1])
    return write_store(path, manifest, rows, gatherer)


def pass_count(path: Path) -> int:
    """Into how many shares jobs divided the pass whose shares are in a folder; the most, where there are several."""
    matches = (PART.fullmatch(file.name) for file in path.glob("part-*"))
    return max((int(match[3]) for match in matches if match), default=0)


def merge_folder(path: Path, data: str | Path | None = None) -> FeatureStore:
    """Make a store of the shares in its folder, which jobs have gathered (`explain --shard`). `data`: where the corpus
    lies, if it moved. ValueError, which names them, when shares are missing, when they are of several passes, and when
    the data is another."""
    passes: dict[tuple[str, int], Path] = {}
    for file in sorted(path.glob("part-*")):
        if match := PART.fullmatch(file.name):
            passes.setdefault((match[1], int(match[3])), file)
    if not passes:
        raise ValueError(f"{path} holds nothing that jobs gathered; gather with glassmoe explain --shard 0/N")
    found: list[tuple[dict[str, Any], int, str]] = []
    for (_, of), file in passes.items():
        try:
            header = _header(file)
            found.append((json.loads(header["identity"]), of, header.get("data", "")))
        except (OSError, SafetensorError, ValueError, LookupError):
            raise ValueError(f"{file} cannot be read; delete it and gather this share again") from None
    missing = [missing_parts(path, manifest, of) for manifest, of, _ in found]
    complete = [entry for entry, lacks in zip(found, missing, strict=True) if not lacks]
    if not complete:
        (_, of, _), lacks = min(zip(found, missing, strict=True), key=lambda entry: len(entry[1]) / entry[0][1])
        raise ValueError(f"{path} lacks {shares(lacks, of)}; run these jobs again, then merge")
    if len(complete) > 1:
        names = ", ".join(f"part-{name_of(manifest)}-*-of-{of}" for manifest, of, _ in complete)
        raise ValueError(f"{path} holds shares of several passes ({names}); delete those that are not wanted")
    manifest, of, known = complete[0]
    corpus = Corpus.open(known if data is None else data, manifest["tokens"])
    if corpus.fingerprint != manifest["data_sha256"]:
        raise ValueError(f"the shares in {path} were read from other data than {corpus.path}; give --data of the jobs")
    return merge_parts(path, manifest, of, corpus)


def shares(numbers: list[int], of: int) -> str:
    """Shares in words: `the shares 3/16, 5/16 and 4 others`."""
    shown = ", ".join(f"{number}/{of}" for number in numbers[:8])
    more = f" and {len(numbers) - 8} others" if len(numbers) > 8 else ""
    return f"the share{'s' if len(numbers) > 1 else ''} {shown}{more}"


def write_store(path: Path, manifest: Mapping[str, Any], rows: StoreRows, gatherer: Gatherer) -> FeatureStore:
    """Write a store, its manifest last, and delete the shares that it was made of."""
    state = gatherer.state()
    names = write_rows(path / "rows.safetensors", rows)
    counted: Arrays = {n: a for n, a in state.items() if n.endswith(("_F", "_FB"))}
    examples: Arrays = {}
    for part in PARTS:
        counted[f"{part}.indptr"] = np.searchsorted(state[f"{part}.feature"], np.arange(gatherer.features + 1))
        examples |= {name: state[name] for name in (f"{part}.window", f"{part}.strengths")}
    for half in HALVES:
        counted |= {f"pool.{half}": gatherer.pool[half], f"pool_fired.{half}": gatherer.pool_fired[half]}
    save_tensors(path / "features.safetensors", whole(counted), save_file)
    save_tensors(path / "examples.safetensors", whole(examples), save_file)
    finished = {
        **manifest,
        "read_tokens": gatherer.read_tokens,
        "l0": float(gatherer.counts_F.sum() / max(1, gatherer.read_tokens)),
        "alive": int((gatherer.counts_F > 0).sum()),
        "skipped_starts": manifest["tokens"] == TEXT,
        "pass": name_of(manifest),
        **({} if names is None else {"source_names": names}),
    }
    write_text(path / MANIFEST, json.dumps(with_checksum(finished), indent=1) + "\n")
    for file in path.glob("part-*"):
        file.unlink(missing_ok=True)
    return FeatureStore(path, finished)


def write_rows(path: Path, rows: StoreRows) -> list[str] | None:
    """Write the tokens, lengths, documents and sources of all rows; returns the names of the sources."""
    count, sources = len(rows), rows.sequences.sources
    arrays: dict[str, tuple[Any, tuple[int, ...]]] = {
        "tokens": (rows.sequences.data.dtype, (count, rows.length)),
        "lengths": (np.int64, (count,)),
        "source_rows": (np.int64, (count,)),
    }
    numbers = np.zeros(0, np.int64)
    if sources is not None:
        for block in rows.blocks():
            numbers = np.union1d(numbers, sources[block.documents_R])
        arrays["sources"] = (np.uint16, (count,))

    def parts() -> Iterable[tuple[str, int, npt.NDArray[Any]]]:
        for block in _shown(rows):
            yield "tokens", block.first, block.tokens()
            yield "lengths", block.first, block.lengths_R
            yield "source_rows", block.first, block.documents_R
            if sources is not None:
                yield "sources", block.first, np.searchsorted(numbers, sources[block.documents_R])

    stream_tensors(path, arrays, parts())
    return None if sources is None else [rows.sequences.source_names[number] for number in numbers.tolist()]


def _shown(rows: StoreRows) -> Iterator[Any]:
    """Blocks of rows, about a million tokens each, with a bar."""
    with bar(len(rows), "writing rows", "row", lines=True) as progress:
        for block in rows.blocks(max(1, TOKENS_WRITTEN // rows.length)):
            yield block
            progress.update(len(block))


def whole(arrays: Arrays) -> Arrays:
    """Arrays as files take them."""
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _header(file: Path) -> dict[str, str]:
    with safe_open(file, "np") as opened:
        return dict(opened.metadata() or {})
