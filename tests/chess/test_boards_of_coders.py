"""A coder goes through the very code that measures a feed-forward layer against the board."""

import pytest
import torch

from glassmoe.chess.board_evaluation import CHARACTERS, DOTS, evaluate_boards
from glassmoe.coders.base import Coder
from glassmoe.coders.configuration import CoderConfig
from glassmoe.coders.kinds import build_coder
from glassmoe.data.corpus import Corpus
from glassmoe.model import GlassConfig, GlassForCausalLM


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    from glassmoe.chess.selfplay import generate

    out = tmp_path_factory.mktemp("played") / "games"
    generate(out, games=60, seed=1, valid_share=0.8, workers=1, progress=False)
    return Corpus.open(out)


def make_model() -> GlassForCausalLM:
    torch.manual_seed(0)
    config = GlassConfig(
        ffn="moe-x", init_std=0.3, width=16, layers=2, heads=2, active_width=32, num_experts=8, context=CHARACTERS
    )
    return GlassForCausalLM(config).eval()


def make_coder(kind: str, features: int) -> Coder:
    torch.manual_seed(1)
    coder = build_coder(CoderConfig(layer=0, kind=kind, features=features, k=8), 16, 100, 1000).eval()
    torch.nn.init.normal_(coder.w_enc, std=0.5)
    return coder


@pytest.mark.parametrize("kind", ["topk", "l1"])
def test_the_report_of_a_coder_is_whole(kind: str, played: Corpus) -> None:
    model, coder = make_model(), make_coder(kind, 64)
    found = evaluate_boards(model, played, games=10, layers=[1], workers=1, coder=coder)
    (entry,) = found.layers
    assert entry.layer == found.best_layer == 1 and entry.width == 64 and 32 < entry.alive <= 64
    assert entry.subsample.width == 32 and entry.subsample.coverage <= entry.coverage
    assert entry.l0 <= 8 if kind == "topk" else entry.l0 > 8
    assert found.boards == 10 * DOTS
    # The control reads a random model with a fresh coder, so it does not see the coder's weights.
    assert (
        entry.random
        == evaluate_boards(model, played, games=10, layers=[1], workers=1, coder=make_coder(kind, 64).train())
        .layers[0]
        .random
    )
    other = make_coder(kind, 64)
    with torch.no_grad():
        other.w_enc.mul_(-1)
    again = evaluate_boards(model, played, games=10, layers=[1], workers=1, coder=other).layers[0]
    assert again.random == entry.random and again.coverage != entry.coverage
    assert any(each.f1_random is not None for each in found.tracked)
    assert all(each.expert is None for each in found.tracked)


def test_a_coder_of_equal_width_needs_no_subsample(played: Corpus) -> None:
    found = evaluate_boards(
        make_model(), played, games=5, layers=[0], controls=False, workers=1, coder=make_coder("topk", 32)
    )
    assert found.layers[0].subsample is None and found.layers[0].random is None


def test_a_planted_reader_of_the_stream_is_found(played: Corpus) -> None:
    """A feature that fires on all late dots detects what is true late and not early."""
    model, coder = make_model(), make_coder("l1", 24)
    direction = torch.linspace(-1, 1, 16)
    with torch.no_grad():
        # The stream is the position embedding alone: one direction up to character 120, its opposite after.
        model.model.layers[0].attention.out.weight.zero_()
        model.model.tokens.weight.zero_()
        model.feed_forwards()[0].w_dec.zero_()
        model.model.positions.weight[:120] = -direction
        model.model.positions.weight[120:] = direction
        coder.w_enc.zero_()
        coder.w_enc[5] = direction
    found = evaluate_boards(model, played, games=15, layers=[0], controls=False, workers=1, coder=coder)
    assert found.layers[0].alive == 1
    assert {each.feature for each in found.tracked if each.f1 > 0} == {5}
    assert any(each.f1 > each.f1_always_on + 0.05 for each in found.tracked)


def test_a_coder_reads_one_layer(played: Corpus) -> None:
    with pytest.raises(ValueError, match=r"reads at one layer, not at \[0, 1\]; give layers="):
        evaluate_boards(make_model(), played, coder=make_coder("topk", 32))
