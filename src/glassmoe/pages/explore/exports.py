"""The same features as the files of others: Neuronpedia's bulk layout, delphi's cache of latents, figures for papers.

Neuronpedia (`MODEL/SOURCE/{model,release,source,sourceset}.jsonl`, `features`, `activations` and `explanations` as
`batch-N.jsonl.gz` of 1,024 features): the record shapes that its exporter writes, without what only its database knows.
delphi (`RUN/READER/latents/MODULE/START_END.safetensors` with `locations` (n, 3) of row, position and latent minus
START, `activations` float16 and `tokens`, and `config.json`): what its `LatentDataset` opens.

Legend: n strengths above 0, R rows, N tokens of a row.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from glassmoe.inspect.store import Examples

from .figures import figures
from .folder import made_folder
from .records import Recorder, rounded
from .site import LOGITS, folders_of, order_of, ties_of
from .sources import Options, Source, open_sources

BATCH, SPLITS = 1024, 5


def export(kind: str, runs: Sequence[Path], out: Path, options: Options | None = None) -> dict[str, Any]:
    """Write the features of `runs` to the folder `out` as `neuronpedia`, `delphi` or `figures`, and return what was
    written: {"export", "out", "layers": [{"run", "reader", "files"}]}. ValueError as for `build_site`, and when
    delphi's cache is asked of a store that keeps examples only."""
    options = options or Options()
    sources = open_sources(runs, options)
    for source in sources if kind == "delphi" else ():
        if not source.store.manifest["full"]:
            raise ValueError(
                f"delphi's cache holds every strength, and {source.store.path} keeps examples only; make it again "
                f"with: glassmoe explain {source.run} --layer {source.reader.number} --judge none --full --again"
            )
    with made_folder(out) as folder:
        if kind == "figures":
            written = figures(sources, folder)
        else:
            one = neuronpedia if kind == "neuronpedia" else delphi
            places = folders_of(sources)
            written = [one(source, folder / place, options) for source, place in zip(sources, places, strict=True)]
    layers = [
        {"run": source.name, "reader": source.title, "files": files}
        for source, files in zip(sources, written, strict=True)
    ]
    return {"export": kind, "out": str(out), "layers": layers}


def neuronpedia(source: Source, folder: Path, options: Options) -> str:
    """One source of a model in Neuronpedia's bulk layout."""
    recorder = Recorder(source, ties_of(source), boards=False)
    features = sorted(order_of(source)[: options.features])
    model, name = folder.parent.name, folder.name
    same = {"modelId": model, "layer": name}
    now = {"createdAt": datetime.now(UTC).isoformat(timespec="seconds")}
    folder.mkdir(parents=True)
    width, layers = source.subject.width, source.subject.layers
    _lines(
        folder / "model.jsonl", [{"id": model, "displayName": source.name, "layers": layers, "dimension": width, **now}]
    )
    _lines(folder / "release.jsonl", [{"name": model, "description": f"features of {source.name}", **now}])
    sets = {"modelId": model, "name": source.reader.layer.__class__.__name__, "releaseName": model, **now}
    _lines(folder / "sourceset.jsonl", [sets])
    manifest = source.store.manifest
    about = {"num_prompts": manifest["rows"], "num_tokens_in_prompt": manifest["row"], "hasDashboards": True}
    _lines(folder / "source.jsonl", [{"id": name, "modelId": model, "setName": sets["name"], **about, **now}])
    for batch in range(-(-len(features) // BATCH)):
        some = features[batch * BATCH : (batch + 1) * BATCH]
        records = {feature: recorder.record(feature) for feature in some}
        wanted = {
            "features": (_np_feature(source, records[f]) | same | {"sourceSetName": sets["name"]} for f in some),
            "activations": (line | same for f in some for line in _np_activations(recorder, f)),
            "explanations": (line | same for f in some for line in _np_explanations(source, f)),
        }
        for part, lines in wanted.items():
            (folder / part).mkdir(exist_ok=True)
            _lines(folder / part / f"batch-{batch}.jsonl.gz", lines)
    return f"{len(features):,} features in Neuronpedia's layout"


def _np_feature(source: Source, record: dict[str, Any]) -> dict[str, Any]:
    """Its numbers, logits and nearest features. The histogram's heights are counts of tokens."""
    edges, histogram = source.store.edges_B, record["histogram"]
    first, counts = histogram["first"], histogram["counts"]
    up, down = record["logits"].get("up", []), record["logits"].get("down", [])
    assert len(up) <= LOGITS
    near = record["near"].get("written", [])
    return {
        "index": str(record["id"]),
        "maxActApprox": record["max"],
        "frac_nonzero": record["count"] / source.store.manifest["read_tokens"],
        "hasVector": False,
        "freq_hist_data_bar_heights": counts,
        "freq_hist_data_bar_values": [rounded(edge) for edge in edges[first : first + len(counts)]],
        "pos_str": [token for token, _ in up],
        "pos_values": [value for _, value in up],
        "neg_str": [token for token, _ in down],
        "neg_values": [value for _, value in down],
        "topkCosSimIndices": [feature for feature, _, _ in near],
        "topkCosSimValues": [cosine for _, cosine, _ in near],
    }


def _np_activations(recorder: Recorder, feature: int) -> Iterable[dict[str, Any]]:
    """Its strongest examples (without a bin), and those of each tenth (with the tenth's range as their bin)."""
    store = recorder.store
    top, sample = store.top(feature), store.scoring(feature)
    yield from (_np_activation(recorder, feature, top, e) | {"id": f"{feature}-top-{e}"} for e in range(len(top)))
    peak_E = sample.strengths_EL.max(1, initial=0.0)
    for e in range(len(sample)):
        tenth_E = peak_E[sample.deciles_E == sample.deciles_E[e]]
        bounds = {
            "id": f"{feature}-tenth-{e}",
            "binMin": rounded(tenth_E.min()),
            "binMax": rounded(tenth_E.max()),
            "binContains": 0.1,
        }
        yield _np_activation(recorder, feature, sample, e) | bounds


def _np_activation(recorder: Recorder, feature: int, examples: Examples, e: int) -> dict[str, Any]:
    tokens_L, strengths_L = recorder.store.tokens(examples[e : e + 1])[0], examples.strengths_EL[e]
    peak, row = int(strengths_L.argmax()), int(recorder.store.source_rows_R[examples.rows_E[e]])
    return {
        "index": str(feature),
        "tokens": recorder.words(tokens_L),
        "values": [rounded(value) for value in strengths_L],
        "maxValue": rounded(strengths_L.max()),
        "minValue": rounded(strengths_L.min()),
        "maxValueTokenIndex": peak,
        "qualifyingTokenIndex": peak,
        "dataIndex": str(row),
    }


def _np_explanations(source: Source, feature: int) -> Iterable[dict[str, Any]]:
    for line in source.explained.get(feature, []):
        if text := line.get("explanation"):
            made = {"typeName": str(line["judge"]), "explanationModelName": str(line.get("explainer") or "")}
            yield {"id": f"{feature}-{line['judge']}", "index": str(feature), "description": str(text), **made}


def _lines(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    # Without the time in its header, equal data are equal files.
    file.write_bytes(gzip.compress(text, 5, mtime=0) if file.suffix == ".gz" else text)


def delphi(source: Source, folder: Path, _: Options) -> str:
    """The cache of one module's latents."""
    store, manifest = source.store, source.store.manifest
    module = folder / "latents" / source.reader.place.module
    module.mkdir(parents=True)
    bounds = np.linspace(0, store.num_features, min(SPLITS, store.num_features) + 1).astype(int).tolist()
    row, total = store.rows_RN.shape[1], 0
    for start, end in pairwise(bounds):
        token_Z, feature_Z, strength_Z = store.block(start, end)
        small = max(len(store.rows_RN), row, end - start) < 1 << 16
        locations_Z3 = np.stack([token_Z // row, token_Z % row, feature_Z - start], axis=1)
        arrays = {
            "locations": locations_Z3.astype(np.uint16 if small else np.uint32),
            "activations": strength_Z.astype(np.float16),
            "tokens": store.rows_RN.astype(np.int64),
        }
        save_file(arrays, module / f"{start}_{end - 1}.safetensors")
        total += len(token_Z)
    config = {
        "model_name": source.subject.name,
        "dataset_repo": manifest["data_sha256"],
        "dataset_split": manifest["split"],
        "dataset_name": "",
        "dataset_column": "text",
        "batch_size": manifest["batch_rows"],
        "ctx_len": row,
        "n_tokens": int(store.rows_RN.size),
        "n_splits": len(bounds) - 1,
    }
    (module / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return f"{total:,} strengths in delphi's layout"
