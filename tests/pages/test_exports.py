"""The files of others, read as they read them; figures."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from explored import chess_model, chess_run, explain, games, store_of
from glassmoe.cli import main as cli
from glassmoe.inspect.store import Gathering, open_store, store_path
from glassmoe.pages.explore.exports import export_features


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    made = chess_run(folder)
    explain(
        made, "1/moe-x", [{"feature": 3, "explanation": "a word", "scores": {"detection": {"balanced_accuracy": 0.8}}}]
    )
    return made


def lines(file: Path) -> list[dict]:
    text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def test_neuronpedia(run: Path, tmp_path: Path) -> None:
    export_features("neuronpedia", [run], tmp_path / "np", layers=[1])
    folder, store = tmp_path / "np/chess/1-moe-x", open_store(store_path(run, "1/moe-x"))
    (source,), (model,) = lines(folder / "source.jsonl"), lines(folder / "model.jsonl")
    assert (source["id"], source["modelId"], model["id"]) == ("1-moe-x", "chess", "chess")
    assert lines(folder / "release.jsonl")[0]["name"] == lines(folder / "sourceset.jsonl")[0]["releaseName"]
    features = lines(folder / "features/batch-0.jsonl.gz")
    assert [feature["index"] for feature in features] == [str(f) for f in range(store.num_features)]
    for feature in features:
        number = int(feature["index"])
        assert feature["frac_nonzero"] == pytest.approx(store.counts_F[number] / store.manifest["read_tokens"])
        assert sum(feature["freq_hist_data_bar_heights"]) == store.counts_F[number]
        assert feature["pos_values"] == sorted(feature["pos_values"], reverse=True)
        assert len(feature["neg_str"]) == len(feature["neg_values"]) == 10
    activations = lines(folder / "activations/batch-0.jsonl.gz")
    assert len({line["id"] for line in activations}) == len(activations)
    for line in activations:
        assert len(line["tokens"]) == len(line["values"]) == store.window
        assert line["values"][line["maxValueTokenIndex"]] == line["maxValue"] == max(line["values"])
        assert "binMin" not in line or line["binMin"] <= line["maxValue"] <= line["binMax"]
    (said,) = lines(folder / "explanations/batch-0.jsonl.gz")
    assert (said["index"], said["description"], said["typeName"], said["layer"]) == ("3", "a word", "rules", "1-moe-x")


def test_delphi_reads_back_every_strength(tmp_path: Path) -> None:
    run = chess_model(tmp_path / "run")
    gathering = Gathering(read=2000, window=16, each=4, strongest=2, pool=4, batch_rows=8, full=True)
    store = store_of(run, games(tmp_path / "games"), [1], gathering)
    assert cli.main(["explore", str(run), "--export", "delphi", "--out", str(tmp_path / "out")]) == 0
    folder = tmp_path / "out/run/1-moe-x/latents/model.layers.1.ffn"
    files = sorted(folder.glob("*.safetensors"), key=lambda file: int(file.stem.split("_")[0]))
    ends = [tuple(map(int, file.stem.split("_"))) for file in files]
    assert ends[0][0] == 0 and ends[-1][1] == store.num_features - 1
    assert all(a[1] + 1 == b[0] for a, b in pairwise(ends))
    found: dict[int, list[tuple[int, float]]] = {f: [] for f in range(store.num_features)}
    for file, (start, _) in zip(files, ends, strict=True):
        split = load_file(file)
        assert np.array_equal(split["tokens"], store.rows_RN) and split["locations"].dtype == np.uint16
        assert split["activations"].dtype == np.float16
        for (row, position, latent), value in zip(
            split["locations"].tolist(), split["activations"].tolist(), strict=True
        ):
            found[latent + start].append((row * store.rows_RN.shape[1] + position, value))
    for feature in range(store.num_features):
        tokens, values = store.activations(feature)
        assert [token for token, _ in found[feature]] == tokens.tolist()
        assert [value for _, value in found[feature]] == values.tolist()
    config = json.loads((folder / "config.json").read_text())
    assert config["ctx_len"] == store.rows_RN.shape[1] and config["n_splits"] == len(files)


def test_figures(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = export_features("figures", [run], tmp_path / "figures")
    assert {"density.png", "density.svg", "scores.png", "scores.svg"} <= {
        file.name for file in (tmp_path / "figures").iterdir()
    }
    assert (tmp_path / "figures/scores.png").read_bytes().startswith(b"\x89PNG")
    assert [layer.files for layer in written.layers] == [
        "density of 64 features, scores of 0", "density of 64 features, scores of 1",
    ]  # fmt: skip


def test_figures_without_matplotlib_say_how(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install \"glassmoe\[plots\]\""):
        export_features("figures", [run], tmp_path / "figures")
