"""Results of the boards measure. Scores are shares from 0 to 1; "held-out" means measured on games that did not choose
features or thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from glassmoe.results import Result, markdown_table, omitted, stored_as


@dataclass(frozen=True)
class BoardScores(Result):
    """Scores of one set of features; the first three are of the headline property (which piece stands where)."""

    coverage: float
    """Mean over all slots of the best single feature's F1 on the training games."""
    held_out_coverage: float
    """F1 of the same features and thresholds on the test games."""
    reconstruction: float
    """F1 of test boards rebuilt from the slots that active features detect with 95% precision on the training games."""
    strategy_coverage: float | None
    """Mean over the strategy properties; None if they were not measured."""
    strategy_held_out_coverage: float | None
    strategy_reconstruction: float | None


@dataclass(frozen=True)
class _Width(Result):
    width: int
    """Features that were drawn."""


@dataclass(frozen=True)
class SubsampleScores(BoardScores, _Width):
    """Scores of a random subsample of the features, as wide as a dense layer of equal active parameters."""


@dataclass(frozen=True)
class _Layer(Result):
    layer: int


@dataclass(frozen=True, kw_only=True)
class LayerBoards(BoardScores, _Layer):
    """The scores of one layer, with its controls."""

    coverage_threshold: float
    """Threshold of `coverage`, as a share of a feature's maximum."""
    coverage_own_thresholds: float
    """Coverage with a threshold for every slot."""
    reconstruction_threshold: float
    reconstruction_precision: float
    reconstruction_recall: float
    reconstruction_last: float
    """Reconstruction where each feature counts at the highest threshold that it exceeds only."""
    properties: dict[str, float]
    """Property -> its coverage."""
    width: int
    """Features of the layer."""
    alive: int
    """Features that were non-zero at least once on a sample of the training games."""
    l0: float
    """Features above 0 per token of that sample."""
    l0_boards: float
    """Features above 0 per training board."""
    subsample: SubsampleScores | None = omitted()
    """For a layer wider than a dense layer of equal active parameters."""
    random: BoardScores | None = omitted()
    """The same architecture with random weights; None without controls."""


@dataclass(frozen=True)
class TrackedSlot(Result):
    """One slot (yes/no question of the headline property) and the feature that detects it best."""

    slot: str
    """In words, such as `white knight on f3`."""
    index: int
    """Number of the slot in its property."""
    feature: int
    expert: int | None
    """Expert of the feature; None in a layer without experts."""
    threshold: float
    """Share of its maximum above which the feature fires."""
    f1: float
    """Held-out F1."""
    f1_train: float
    """F1 on the training games, which chose feature and threshold."""
    f1_always_on: float
    """F1 of a feature that always fires."""
    f1_random: float | None
    """Held-out F1 of the best feature of random weights; None without controls."""
    true_share: float
    """Share of the test boards on which the slot is true."""


@dataclass(frozen=True)
class SquareMark(Result):
    """A piece that is on a square clearly more often when a feature fires."""

    square: int
    """0 is a1, 63 is h8."""
    piece: str
    """Its letter in FEN."""
    probability: float
    """Share of the boards on which the feature fires."""
    on_all_boards: float
    """Share of all boards."""


@dataclass(frozen=True)
class ExampleBoard(Result):
    """A test board on which a feature fires."""

    text: str
    """The game up to there."""
    board: str
    """The pieces, in FEN."""
    strength: float
    """Share of the feature's maximum."""
    true: bool
    """Whether the slot that the feature detects best is true there."""


@dataclass(frozen=True)
class DetectingFeature(Result):
    """A feature and the slots that it detects."""

    feature: int
    expert: int | None
    threshold: float
    maximum: float
    """Its greatest strength on the training games."""
    fires_on: float
    """Share of the test boards."""
    slots: list[TrackedSlot]
    """The slots that it detects, the best first."""
    squares: list[SquareMark]
    examples: list[ExampleBoard]


@dataclass(frozen=True)
class FeatureReading(Result):
    """The slots that single features of a layer detect."""

    detected: dict[str, int]
    """`slots`: number of slots that a feature may detect; `f1_0.9`, ...: number of slots detected with that held-out
    F1."""
    tracked: list[TrackedSlot]
    """The slots with the highest F1 on the training games."""
    features: list[DetectingFeature]


@dataclass(frozen=True, kw_only=True)
class BoardsResult(Result):
    """How well single features of each layer track the chess board."""

    FORMATS: ClassVar = {"L0": ".0f"}

    games: int
    """Games that chose the features, and as many that tested them."""
    boards: int
    """Boards of each of the two sets."""
    tested_on: str
    """The test games, in words."""
    headline: str = stored_as("property")
    """Name of the property that coverage and reconstruction are about."""
    best_layer: int
    """The layer with the highest reconstruction."""
    layers: list[LayerBoards]
    detected: dict[str, int] | None = omitted()
    """For the best layer: `FeatureReading.detected`."""
    tracked: list[TrackedSlot] | None = omitted()
    features: list[DetectingFeature] | None = omitted()

    @property
    def best(self) -> LayerBoards:
        """The scores of the best layer."""
        return next(layer for layer in self.layers if layer.layer == self.best_layer)

    def rows(self) -> list[dict[str, Any]]:
        rows = []
        for layer in self.layers:
            row: dict[str, Any] = {
                "layer": layer.layer,
                "coverage": layer.coverage,
                "held-out": layer.held_out_coverage,
                "reconstruction": layer.reconstruction,
                "strategy cov.": layer.strategy_coverage,
                "L0": layer.l0,
                "alive": layer.alive,
                "of": layer.width,
            }
            for label, scores in (("subsample", layer.subsample), ("random weights", layer.random)):
                if scores is not None:
                    row |= {f"{label} held-out": scores.held_out_coverage, f"{label} rec.": scores.reconstruction}
            rows.append(row)
        return rows

    def notes(self) -> list[str]:
        return [
            f"{self.games:,} games to choose features on, {self.games:,} others to test them; best layer by "
            f"reconstruction: {self.best_layer}"
        ]

    def tracked_table(self) -> str:
        """The slots that single features of the best layer detect, as a table with a line under it."""
        rows = [
            [slot.slot, slot.feature, slot.f1, slot.f1_always_on, slot.f1_random, f"{slot.true_share:.1%}"]
            for slot in self.tracked or []
        ]
        detected = self.detected or {}
        return (
            f"Board properties that single features of layer {self.best_layer} detect (chosen on other games):\n\n"
            + markdown_table(["on the board", "feature", "F1", "always-on F1", "random-weight F1", "true on"], rows)
            + f"\n\nSingle features detect {detected['f1_0.9']} of {detected['slots']} board properties with F1 >= "
            f"0.9, {detected['f1_0.75']} with F1 >= 0.75, {detected['f1_0.5']} with F1 >= 0.5"
        )
