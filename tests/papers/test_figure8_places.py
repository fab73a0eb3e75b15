"""What figure 8 shows of a feature."""

import numpy as np

from glassmoe.explaining.windows import Windows
from glassmoe.papers.moex.figure8 import _where


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
    assert _where(OneFeature([[0, 1, 0, 0], [0, 0, 2, 0]]), 0) == "a cat<< sat>>."  # type: ignore[arg-type]


def test_a_feature_that_fires_in_no_scoring_window_has_no_place() -> None:
    assert _where(OneFeature([]), 0) == "-"  # type: ignore[arg-type]
