"""The whole boards measure on real (self-played) games: a model with a planted board reader, controls, messages."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from glassmoe.chess.board_evaluation import CHARACTERS, DOTS, board_games, evaluate_boards
from glassmoe.chess.board_results import BoardsResult
from glassmoe.data.corpus import Corpus
from glassmoe.measure.perplexity import perplexity
from glassmoe.model import GlassConfig, GlassForCausalLM


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    from glassmoe.chess.selfplay import generate

    out = tmp_path_factory.mktemp("played") / "games"
    generate(out, games=60, seed=1, valid_share=0.8, workers=1, progress=False)
    return Corpus.open(out)


def make(ffn: str, **settings: object) -> GlassForCausalLM:
    torch.manual_seed(0)
    config = {"width": 16, "layers": 2, "heads": 2, "active_width": 32, "num_experts": 8, "context": CHARACTERS}
    return GlassForCausalLM(GlassConfig(ffn=ffn, init_std=0.3, **{**config, **settings})).eval()


def test_the_report_is_whole(played: Corpus) -> None:
    found = evaluate_boards(make("moe-x"), played, games=10, workers=1)
    assert found.games == 10 and found.boards == 10 * DOTS
    assert [layer.layer for layer in found.layers] == [0, 1]
    for layer in found.layers:
        assert layer.width == 128 and 0 < layer.alive <= 128
        assert layer.subsample.width == 32
        for part in (layer, layer.subsample, layer.random):
            assert 0 <= part.held_out_coverage <= part.coverage <= 1
            assert 0 <= part.reconstruction <= 1 and 0 <= part.strategy_coverage <= 1
        # Fewer features can only lower a maximum over features.
        assert layer.subsample.coverage <= layer.coverage
    assert found.tracked and all(0.01 <= each.true_share <= 0.4 for each in found.tracked)
    assert [each.f1 for each in found.tracked] == sorted((each.f1 for each in found.tracked), reverse=True)
    best = [layer.reconstruction for layer in found.layers]
    assert found.best_layer == best.index(max(best)) and found.best is found.layers[found.best_layer]
    values = found.to_dict()
    assert BoardsResult.from_dict(json.loads(json.dumps(values))) == found
    assert list(values["layers"][0])[:3] == ["layer", "coverage", "held_out_coverage"]
    assert (
        list(values["layers"][0])[-2:] == ["subsample", "random"]
        and next(iter(values["layers"][0]["subsample"])) == "width"
    )
    assert "random weights held-out" in found.table() and "10 games to choose features on" in found.table()
    assert f"of {found.detected['slots']} board properties" in found.tracked_table()


def test_a_dense_layer_of_equal_width_needs_no_subsample(played: Corpus) -> None:
    found = evaluate_boards(make("relu"), played, games=5, layers=[1], controls=False, workers=1)
    (layer,) = found.layers
    assert layer.layer == 1 and layer.subsample is None and layer.random is None
    assert all(each.f1_random is None for each in found.tracked)


def test_a_planted_reader_is_found(played: Corpus) -> None:
    """A neuron that fires on all late dots detects what is true late and not early: its F1 beats the random twin's."""
    model = make("relu", layers=1)
    with torch.no_grad():
        ffn = model.feed_forwards()[0]
        ffn.w_enc.zero_()
        model.model.layers[0].attention.out.weight.zero_()
        model.model.tokens.weight.zero_()
        # The stream is the position embedding alone: one direction up to character 120, its opposite after.
        direction = torch.linspace(-1, 1, 16)
        model.model.positions.weight[:120] = -direction
        model.model.positions.weight[120:] = direction
        ffn.w_enc[5] = direction
    found = evaluate_boards(model, played, games=15, controls=False, workers=1)
    assert found.layers[0].alive == 1
    assert {each.feature for each in found.tracked if each.f1 > 0} == {5}
    late = [each for each in found.tracked if each.f1 > each.f1_always_on + 0.05]
    assert late, "no slot is told apart by the time of the game"


def test_features_are_tested_on_other_games_where_they_are_given(played: Corpus, tmp_path: Path) -> None:
    from glassmoe.chess.selfplay import generate

    generate(tmp_path / "unseen", games=20, seed=2, valid_share=0.5, workers=1, progress=False)
    unseen = Corpus.open(tmp_path / "unseen")
    found = evaluate_boards(make("relu"), played, games=9, test_corpus=unseen, controls=False, workers=1)
    # All of the unseen games count, whatever their split; the features are chosen on the first 9 validation games.
    assert found.games == 9 and found.tested_on == f"synthetic games of seed 2 ({unseen.fingerprint[:12]})"
    same = evaluate_boards(make("relu"), played, games=9, controls=False, workers=1)
    assert same.tested_on == "the validation split"
    assert [x.coverage for x in same.layers] == [x.coverage for x in found.layers]
    assert [x.held_out_coverage for x in same.layers] != [x.held_out_coverage for x in found.layers]
    with pytest.raises(ValueError, match="holds the games of the run itself"):
        evaluate_boards(make("relu"), played, games=9, test_corpus=played)


def test_board_games_have_twenty_dots_and_256_characters(played: Corpus) -> None:
    texts = board_games(played.split("valid"), 100)
    assert all(text.count(".") >= DOTS and len(text) <= CHARACTERS for text in texts)
    everything = [played.split("valid").text(i)[:CHARACTERS] for i in range(len(played.split("valid")))]
    assert len(texts) == sum(text.count(".") >= DOTS for text in everything)
    assert board_games(played.split("valid"), 3) == texts[:3]


def test_mistakes_are_named(played: Corpus, noise_games: Path) -> None:
    with pytest.raises(ValueError, match="layer 2 is not in this model: it has layers 0 to 1"):
        evaluate_boards(make("gelu"), played, layers=[2])
    with pytest.raises(ValueError, match=r"reads 256 characters .* context is 64"):
        evaluate_boards(make("gelu", context=64), played)
    with pytest.raises(ValueError, match="fewer than 2 games with 20 moves"):
        evaluate_boards(make("gelu"), Corpus.open(noise_games))


def test_perplexity_by_hand(noise_games: Path) -> None:
    from glassmoe.data.corpus import Rows

    model = make("gelu")
    with torch.no_grad():
        model.model.tokens.weight.zero_()
    rows = Rows(Corpus.open(noise_games).split("valid"), "games:64")
    found = perplexity(model, rows, micro_rows=7)
    assert found.perplexity == pytest.approx(32, rel=1e-5)
    assert found.bits_per_character == pytest.approx(5, rel=1e-5)
    assert found.loss_standard_error == pytest.approx(0, abs=1e-6)
    assert found.tokens == int((rows.batch(np.arange(len(rows)))[1] - 1).sum())
    assert perplexity(make("moe-x"), rows, max_rows=5).rows_read == 5
