"""What features say of boards: against counting everything the plain way, and planted features by name."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from glassmoe.chess.board_counts import as_acts, as_labels, best_slots, f1_score, threshold_at
from glassmoe.chess.board_explanations import (
    EXPLAINED,
    KEPT,
    START,
    PropertyExplanation,
    _surprising,
    at_home,
    explain,
    explain_boards,
    explained_name,
)
from glassmoe.chess.board_labels import label_games
from glassmoe.chess.board_properties import PROPERTIES
from glassmoe.chess.selfplay import generate
from glassmoe.data.corpus import Corpus
from glassmoe.inspect.harvest import Harvest
from glassmoe.model import GlassConfig, GlassForCausalLM

SLOTS = sum(PROPERTIES[name].slots for name in EXPLAINED)


def made(rng: np.random.Generator, boards: int, features: int) -> np.ndarray:
    values = rng.random((boards, features)).astype(np.float32)
    return np.where(rng.random(values.shape) < 0.6, values, 0).astype(np.float32)


@pytest.mark.parametrize("sparse", [False, True])
def test_best_slots_are_those_of_trying_everything(sparse: bool) -> None:
    rng = np.random.default_rng(0)
    acts, labels = made(rng, 200, 21), (rng.random((200, 9)) < rng.random(9)).astype(np.uint8)
    maxima, alive = acts.max(0), np.array([f for f in range(21) if f != 4], np.int32)
    given = as_acts(sp.csr_array(acts) if sparse else acts)
    slots, thresholds, f1 = best_slots(given, as_labels(labels), maxima, alive, 3)
    assert slots.shape == thresholds.shape == f1.shape == (20, 3)
    for at, feature in enumerate(alive):
        expected = np.array(
            [
                max(
                    float(
                        f1_score(
                            (
                                (on := acts[:, feature] > np.float32(threshold_at(t)) * maxima[feature])
                                & (labels[:, b] > 0)
                            ).sum(),
                            on.sum(),
                            labels[:, b].sum(),
                        )
                    )
                    for t in range(11)
                )
                for b in range(9)
            ]
        )
        assert slots[at].tolist() == np.argsort(-expected, kind="stable")[:3].tolist()
        assert f1[at] == pytest.approx(expected[slots[at]])
        for slot, threshold, value in zip(slots[at], thresholds[at], f1[at], strict=True):
            on = acts[:, feature] > np.float32(threshold_at(threshold)) * maxima[feature]
            assert value == pytest.approx(
                float(f1_score((on & (labels[:, slot] > 0)).sum(), on.sum(), labels[:, slot].sum()))
            )


def slot_of(words: str) -> int:
    return next(slot for slot in range(SLOTS) if explained_name(slot) == words)


def harvest(acts: np.ndarray, sparse: bool) -> Harvest:
    rows = sp.csr_array(acts) if sparse else acts
    return Harvest(rows, acts.max(0), acts.max(0) > 0, 1.0)


@pytest.mark.parametrize("sparse", [False, True])
def test_planted_features_are_named(tmp_path: Path, sparse: bool) -> None:
    """Features that are properties, one with half its recall, one that never fires, and noise; figures by hand."""
    generate(tmp_path / "games", games=60, seed=3, workers=1)
    texts = [Corpus.open(tmp_path / "games").split("train").text(i) for i in range(40)]
    texts = [text for text in texts if text.count(".") >= 12]
    half = len(texts) // 2
    labels = [
        as_labels(sp.hstack([sp.csr_array(found[name]) for name in EXPLAINED], format="csr"))
        for found in (label_games(part, EXPLAINED, dots=12, workers=1) for part in (texts[:half], texts[half:]))
    ]
    dense = [each.toarray().astype(np.float32) for each in labels]
    share = dense[0].mean(0)
    wanted = (share >= 0.05) & (share <= 0.4) & (dense[1].mean(0) > 0.03)
    # Some squares always change together: a slot that no other equals has one name.
    unique = [
        int(s)
        for s in np.flatnonzero(wanted)
        if sum((dense[0][:, s] == dense[0][:, o]).all() for o in np.flatnonzero(wanted)) == 1
    ]
    one, two = unique[0], unique[-1]
    rng = np.random.default_rng(0)
    acts = []
    for each in dense:
        kept = each[:, two] * (np.arange(len(each)) % 2)
        acts.append(
            np.stack([3 * each[:, one], kept, np.zeros(len(each)), rng.random(len(each))], 1).astype(np.float32)
        )
    found = explain(harvest(acts[0], sparse), harvest(acts[1], sparse), *labels, wanted)
    assert found.keys() == {0, 1, 3}
    assert found[0].property == explained_name(one) and found[0].slot == one
    assert found[0].precision == found[0].recall == 1 and found[0].f1 == pytest.approx(1, abs=1e-6)
    assert found[0].true_share == pytest.approx(dense[1][:, one].mean())
    p = found[0].true_share
    assert found[0].f1_always_on == pytest.approx(2 * p / (1 + p), abs=1e-6)
    assert len(found[0].also) == KEPT - 1 and found[0].also[0].property != found[0].property
    assert found[1].slot == two and found[1].precision == 1
    assert found[1].recall == pytest.approx(acts[1][:, 1].sum() / dense[1][:, two].sum())


def test_slots_in_words() -> None:
    assert explained_name(0) == "black king on a1" and explained_name(12 + 13 * 63) == "white king on h8"
    assert (
        explained_name(13 * 64) == "black piece on a1"
        and explained_name(SLOTS - 1) == "two pieces of one kind reach one square"
    )
    with pytest.raises(ValueError, match="slot is too high"):
        explained_name(SLOTS)


@pytest.mark.parametrize(
    "words, expected",
    [
        ("white knight on g1", True),
        ("white knight on f3", False),
        ("blank on e4", True),
        ("black pawn on d7", True),
        ("black pawn on d2", False),
        ("white piece on a1", True),
        ("black piece on a1", False),
        ("e4 attacked by Black", False),
        ("side to move is in check", False),
    ],
)
def test_what_is_at_home(words: str, expected: bool) -> None:
    assert at_home(slot_of(words)) is expected
    assert len(START) == 64


def test_surprising_features_are_not_chosen_by_the_scores_that_are_shown() -> None:
    """Feature 1 is better on the other games, but feature 0 on those that choose. Feature 3 is behind random weights on
    the choosing games."""

    def detects(slot: int, f1_chosen: float, f1: float) -> PropertyExplanation:
        name = f"property {slot}"
        return PropertyExplanation(name, slot, 0.5, f1_chosen, f1, f1, f1=f1, true_share=0.1, f1_always_on=0.2)

    features = {0: detects(0, 0.6, 0.3), 1: detects(0, 0.5, 0.9), 2: detects(1, 0.8, 0.1), 3: detects(2, 0.4, 0.8)}
    found = _surprising(features, np.array([0.1, 0.3, 0.5]))
    assert [each.feature for each in found] == [2, 0]  # 0.8 - 0.3 and 0.6 - 0.2
    assert [each.more for each in found] == [pytest.approx(0.1 - 0.3), pytest.approx(0.3 - 0.2)]


def test_from_a_model_to_its_layers(tmp_path: Path) -> None:
    generate(tmp_path / "games", games=300, seed=3, workers=1)
    corpus = Corpus.open(tmp_path / "games")
    model = GlassForCausalLM(
        GlassConfig(ffn="moe-x", width=16, layers=2, heads=2, active_width=32, num_experts=4, context=256)
    ).eval()
    found = explain_boards(model, corpus, 1, games=4, workers=1)
    assert found.width == found.alive == 64 and found.layer == 1
    assert set(found.levels) == {"0.9", "0.75", "0.5"} and found.levels.keys() == found.random.keys()
    for level, count in found.levels.items():
        assert count == sum(each.f1 >= float(level) for each in found.features.values())
        assert found.always_on[level] <= count >= found.at_home[level]
    assert all(each.more == each.f1 - max(each.f1_always_on, each.f1_random) for each in found.surprising)
    with pytest.raises(ValueError, match="layer 2 is not in this model"):
        explain_boards(model, corpus, 2)
    short = GlassForCausalLM(GlassConfig(ffn="relu", width=16, layers=1, heads=2, active_width=32, context=64))
    with pytest.raises(ValueError, match="256 characters"):
        explain_boards(short, corpus, 0)
