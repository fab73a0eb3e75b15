"""Features as files of other tools: Neuronpedia's bulk layout, delphi's cache of latents, figures for papers.

Neuronpedia (`MODEL/SOURCE/{model,release,source,sourceset}.jsonl`, and `features`, `activations` and `explanations` as
`batch-N.jsonl.gz` of 1,024 features): the records that its exporter writes, without what only its database knows.
delphi (`RUN/LAYER/latents/MODULE/START_END.safetensors` with `locations` (n, 3) of row, position and latent minus
START, `activations` float16 and `tokens`, and `config.json`): what its `LatentDataset` reads.

Legend: n strengths above 0, R rows, N tokens of a row.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file

from glassmoe.inspect.examples import Examples
from glassmoe.pages.folder import EXPLORE, new_folder

from .explored import ExploredLayer, folders_of, open_explored
from .figures import figures
from .records import FeatureRecord, Recorder, rounded
from .results import ExportedLayer, ExportResult
from .site import LOGITS, order_of, relations_of

BATCH, SPLITS = 1024, 5
ExportKind = Literal["neuronpedia", "delphi", "figures"]


def export_features(
    kind: ExportKind,
    runs: str | Path | Sequence[str | Path],
    out: str | Path = "site",
    *,
    layers: Sequence[int] | None = None,
    features: int | None = None,
    source: str | Path | None = None,
    device: str = "auto",
) -> ExportResult:
    """Write the features of some runs to the folder `out` for another tool. The other parameters are those of
    `build_site`. ValueError as there, and when delphi's cache is asked of a store that keeps examples only."""
    with new_folder(Path(out), EXPLORE) as folder:
        explored = open_explored(runs, layers, source, device)
        for layer in explored if kind == "delphi" else ():
            if not layer.store.manifest["full"]:
                raise ValueError(
                    f"delphi's cache holds every strength, and {layer.store.path} keeps examples only; make it again "
                    f"with: glassmoe explain {layer.run} --layer {layer.reader.number} --judge none --full --again"
                )
        if kind == "figures":
            written = figures(explored, folder)
        elif kind == "delphi":
            written = [delphi(layer, folder / place) for layer, place in _places(explored)]
        else:
            written = [neuronpedia(layer, folder / place, features) for layer, place in _places(explored)]
    return ExportResult(
        kind,
        str(out),
        [ExportedLayer(layer.name, layer.title, files) for layer, files in zip(explored, written, strict=True)],
    )


def _places(layers: Sequence[ExploredLayer]) -> list[tuple[ExploredLayer, str]]:
    return list(zip(layers, folders_of(layers), strict=True))


def neuronpedia(layer: ExploredLayer, folder: Path, count: int | None = None) -> str:
    """Write one source of a model in Neuronpedia's bulk layout. `count`: the first so many features of the list."""
    recorder = Recorder(layer, relations_of(layer), boards=False)
    features = sorted(order_of(layer)[:count])
    model, name = folder.parent.name, folder.name
    same = {"modelId": model, "layer": name}
    now = {"createdAt": datetime.now(UTC).isoformat(timespec="seconds")}
    folder.mkdir(parents=True)
    width, depth = layer.subject.width, layer.subject.layers
    _lines(
        folder / "model.jsonl", [{"id": model, "displayName": layer.name, "layers": depth, "dimension": width, **now}]
    )
    _lines(folder / "release.jsonl", [{"name": model, "description": f"features of {layer.name}", **now}])
    sets = {"modelId": model, "name": layer.reader.layer.__class__.__name__, "releaseName": model, **now}
    _lines(folder / "sourceset.jsonl", [sets])
    manifest = layer.store.manifest
    about = {"num_prompts": manifest["rows"], "num_tokens_in_prompt": manifest["row"], "hasDashboards": True}
    _lines(folder / "source.jsonl", [{"id": name, "modelId": model, "setName": sets["name"], **about, **now}])
    for batch in range(-(-len(features) // BATCH)):
        some = features[batch * BATCH : (batch + 1) * BATCH]
        records = {feature: recorder.record(feature) for feature in some}
        parts = {
            "features": (_np_feature(layer, records[f]) | same | {"sourceSetName": sets["name"]} for f in some),
            "activations": (line | same for f in some for line in _np_activations(recorder, f)),
            "explanations": (line | same for f in some for line in _np_explanations(layer, f)),
        }
        for part, lines in parts.items():
            (folder / part).mkdir(exist_ok=True)
            _lines(folder / part / f"batch-{batch}.jsonl.gz", lines)
    return f"{len(features):,} features in Neuronpedia's layout"


def _np_feature(layer: ExploredLayer, record: FeatureRecord) -> dict[str, Any]:
    """Numbers, logits and nearest features. The histogram's heights are counts of tokens."""
    edges = layer.store.edges_B
    first, counts = record.histogram.first, record.histogram.counts
    up, down = record.logits.get("up", []), record.logits.get("down", [])
    assert len(up) <= LOGITS
    near = record.near.get("written", [])
    return {
        "index": str(record.id),
        "maxActApprox": record.max,
        "frac_nonzero": record.count / layer.store.manifest["read_tokens"],
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
    """The strongest examples (without a bin), and those of each tenth (with the tenth's range as their bin)."""
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


def _np_explanations(layer: ExploredLayer, feature: int) -> Iterable[dict[str, Any]]:
    for line in layer.explained.get(feature, []):
        if line.text:
            names = {"typeName": line.judge, "explanationModelName": line.explainer}
            yield {"id": f"{feature}-{line.judge}", "index": str(feature), "description": line.text, **names}


def _lines(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    # Without the time in its header, equal data are equal files.
    file.write_bytes(gzip.compress(text, 5, mtime=0) if file.suffix == ".gz" else text)


def delphi(layer: ExploredLayer, folder: Path) -> str:
    """Write the cache of one module's latents."""
    store, manifest = layer.store, layer.store.manifest
    module = folder / "latents" / layer.reader.place.module
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
        "model_name": layer.subject.name,
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
