"""What figure 8 shows of a feature."""

from types import SimpleNamespace

import numpy as np
import pytest

from glassmoe.chess.tokens import CHARACTERS
from glassmoe.explaining.results import FeatureExplanation
from glassmoe.explaining.windows import Windows
from glassmoe.papers.moex import best_explained
from glassmoe.papers.moex.best_explained import where_fires


class OneFeature:
    """A text with the windows that score its only feature."""

    def __init__(self, strengths: list[list[float]]):
        strengths_EL = np.array(strengths, np.float32).reshape(-1, 4)
        count = len(strengths_EL)
        piece_EL = np.tile(np.arange(4), (count, 1))
        deciles_E = np.zeros(count, np.int64)
        self.scored = Windows(("a", " cat", " sat", "."), piece_EL, piece_EL, strengths_EL, deciles_E)
        self.store = self
        self.maxima_F = np.array([2.0])

    def scoring(self, feature: int) -> Windows:
        assert feature == 0
        return self.scored

    def windows(self, examples: Windows) -> Windows:
        return examples


def test_the_strongest_place() -> None:
    assert where_fires(OneFeature([[0, 1, 0, 0], [0, 0, 2, 0]]), 0) == "a cat<< sat>>."  # type: ignore[arg-type]


def test_a_feature_that_fires_in_no_scoring_window_has_no_place() -> None:
    assert where_fires(OneFeature([]), 0) == "-"  # type: ignore[arg-type]


@pytest.mark.parametrize(("often", "shown"), [([False, True], [1]), ([False, False], [0, 1]), ([True, True], [0, 1])])
def test_features_of_few_windows_are_shown_where_there_are_no_others(
    often: list[bool], shown: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three windows are easily right."""
    monkeypatch.setattr(best_explained, "where_fires", lambda *_: "-")
    lines = [
        FeatureExplanation.from_dict(
            {
                "feature": number,
                "explanation": f'fires on the token "{number}"',
                "fires": 9,
                "scores": {
                    "detection": {"balanced_accuracy": 1 - number / 10, "examples": 150 if many else 149, "asked": 200}
                },
                "control": {},
            }
        )
        for number, many in enumerate(often)
    ]
    store = SimpleNamespace(num_features=4, manifest={"num_experts": None, "read_tokens": 90})
    examples = SimpleNamespace(store=store, subject=SimpleNamespace(kind=lambda: CHARACTERS))
    found = best_explained.best_explained(examples, lines)  # type: ignore[arg-type]
    assert [(each.feature, each.fires) for each in found] == [(number, 0.1) for number in shown]
