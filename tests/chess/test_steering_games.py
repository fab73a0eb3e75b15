"""Features of chess models raised, against the same done by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from game_files import prepare, synthetic
from glassmoe.chess.steering_games import positions, steered_games
from glassmoe.cli import main as cli
from glassmoe.data.corpus import Corpus
from glassmoe.inspect.edit import Edit, spliced
from glassmoe.model.neurons import neurons
from glassmoe.model.subject import activations, load_subject
from glassmoe.papers.moex.steering_games import SteeredMoves, SteeringGamesResults
from glassmoe.training.language import train
from tiny_runs import tiny

chess = pytest.importorskip("chess")


@pytest.fixture(scope="module", params=["characters", "moves"])
def corpus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "games.txt").write_text("\n".join(synthetic(60)))
    prepare(folder, folder / "games.txt", valid_share=0.5, tokens=request.param)
    return Corpus.open(folder / "out")


def test_positions_are_where_white_is_to_move(corpus: Corpus) -> None:
    found = positions(corpus, 5, 200)
    assert 1 <= len(found) <= 5 and len({len(row) for row in found}) == 1
    for row in found:
        text = corpus.kind.decode(row)
        assert text.endswith(".") if corpus.kind.name == "characters" else len(text.split()) % 2 == 1


def run_of(corpus: Corpus, out: Path, ffn: str = "moe-x") -> Path:
    config = tiny(corpus.path, ffn, steps=2)
    config.data.tokens, config.data.rows = corpus.kind.name, "games:100"
    train(config, out)
    return out


def test_raised_features_against_one_written_out(corpus: Corpus, tmp_path: Path) -> None:
    subject = load_subject(str(run_of(corpus, tmp_path / "run")))
    prompts = positions(corpus, 4, subject.context)
    layer, place = neurons(subject, 1), subject.place(1, "mlp")
    same = steered_games(subject, layer, place, prompts, 0.0, features=3)
    assert all(row.changed == 0 and row.shift == pytest.approx(0, abs=1e-7) for row in same.features)
    assert all(row.legal == same.legal for row in same.features)
    found = steered_games(subject, layer, place, prompts, 50.0, features=3)
    ids = torch.from_numpy(np.stack(prompts).astype(np.int64))
    strengths = layer.features(activations(subject.model, [place], ids)[place].x.flatten(0, 1)).to_dense()
    with torch.no_grad():
        before = subject.model(ids).logits[:, -1].log_softmax(-1)
        for row in found.features:
            feature = row.feature
            assert row.amount == pytest.approx(50 * float(strengths[:, feature].max()), rel=1e-5)
            with spliced(subject.model, layer, place, Edit("add", (feature,), row.amount)):
                after = subject.model(ids).logits[:, -1].log_softmax(-1)
            kl = (before.exp() * (before - after)).sum(-1).mean()
            assert row.shift == pytest.approx(float(kl), rel=1e-3, abs=1e-6) and row.shift > 0


def test_a_layer_in_which_nothing_fires_has_a_row_without_means(tmp_path: Path) -> None:
    row = {"name": "run", "features": "1/relu", "positions": 3, "legal": 0.5, "rows": []}
    rows = [SteeredMoves.from_dict({**row, "times": times}) for times in (1.0, 4.0)]
    SteeringGamesResults(command="", commit="", hardware="", entries=rows).save(tmp_path, "silent")
    assert "| run   | 1/relu   | 4     | 0 | 0.500 | -" in (tmp_path / "silent.md").read_text()


def test_the_verb_writes_results(corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(corpus, tmp_path / "run")
    words = ["reproduce", "steering-games", str(run), "--data.path", str(corpus.path), "--features", "2"]
    words += ["--positions", "3", "--layers", "1", "--results", str(tmp_path / "results")]
    assert cli.main(words) == 0
    found = json.loads((tmp_path / "results/steering-games-run.json").read_text())
    assert [row["times"] for row in found["rows"]] == [1.0, 4.0] and len(found["rows"][0]["rows"]) == 2
    page = (tmp_path / "results/steering-games-run.md").read_text()
    assert "1/moe-x" in page and (tmp_path / "results/figures/steering-games-run.png").exists()
    capsys.readouterr()
    other = tmp_path / "short"
    (tmp_path / "short.txt").write_text("\n".join(synthetic(30, seed=5, max_chars=38)))
    prepare(tmp_path, tmp_path / "short.txt", name="short", valid_share=0.5, tokens=corpus.kind.name)
    if corpus.kind.name == "characters":
        assert cli.main([*words[:3], "--data.path", str(other)]) == 2
        assert "no validation game of more than 40 characters" in capsys.readouterr().err
