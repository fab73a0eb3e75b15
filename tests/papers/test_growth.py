"""Growth of the board score: both lines by hand, and what is not followed."""

import math
from typing import Any

import pytest

from glassmoe.papers.moex.growth import GOAL, growth
from glassmoe.papers.moex.rows import MeasuredRow
from glassmoe.papers.moex.suites import SUITES
from result_rows import cells, results, row


def scored(name: str, *points: tuple[float, float], seed: int = 0, **more: Any) -> MeasuredRow:
    """A row with (million tokens, reconstruction) along its run."""
    curve = [[millions * 1e6, 0.1, 0.05, score, 1] for millions, score in points]
    return row(name, seed, board_curve=curve, **more)


def test_both_lines_by_hand() -> None:
    (found,) = growth([scored("gelu", (1, 0.1), (2, 0.2), (4, 0.3))])
    # Means 7/3 and 0.2; slope 0.3 / (14/3) = 9/140; start 0.2 - 0.15.
    line = found.by_million
    assert (line.slope, line.start) == (pytest.approx(9 / 140), pytest.approx(0.05))
    assert line.at(2e6) == pytest.approx(0.05 + 18 / 140)
    # It misses -2/140, 3/140 and -1/140.
    assert line.residual == pytest.approx(math.sqrt(14 / 3) / 140)
    assert found.goal(line) == pytest.approx(0.35 * 140 / 9 * 1e6)
    line = found.by_doubling
    assert (line.slope, line.residual) == (pytest.approx(0.1), pytest.approx(0, abs=1e-12))
    assert line.at(4e6) == pytest.approx(0.3)
    assert found.goal(line) == pytest.approx(8e6)


def test_seeds_share_a_line_and_two_lengths_have_none() -> None:
    points = [(2, 0.1), (4, 0.1), (8, 0.1)]
    seeds = [scored("gelu", *points), scored("gelu", *((x, y + 0.2) for x, y in points), seed=1)]
    (found,) = growth([*seeds, scored("relu", (4, 0.1), (8, 0.2)), scored("relu", (4, 0.1), (8, 0.3), seed=1)])
    assert found.name == "gelu" and len(found.points) == 6
    assert found.by_million.start == pytest.approx(0.2) and found.by_million.residual == pytest.approx(0.1)


def test_tokens_of_the_source_count() -> None:
    (found,) = growth([scored("moe-x-upcycled", (1, 0.1), (2, 0.2), (4, 0.3), own_tokens=4_000_000)])
    assert [tokens for tokens, _ in found.points] == [5e6, 6e6, 8e6]


@pytest.mark.parametrize(
    ("points", "million", "doubling"),
    [
        ([(1, 0.1), (2, 0.2), (4, 0.3)], "5M", "8M"),
        ([(1, 0.3), (3, GOAL), (4, GOAL - 0.01)], "3M", "3M"),
        ([(1, 0.1), (2, 0.1), (4, 0.1)], "> 10x", "> 10x"),
        ([(1, 0.3), (2, 0.2), (4, 0.1)], "> 10x", "> 10x"),
        ([(1, 0.1), (2, 0.11), (4, 0.12)], "> 10x", "> 10x"),
        ([(1, 0.1), (2, 0.11), (4, 0.14)], "23M", "> 10x"),
    ],
)
def test_what_the_page_says(points: list[tuple[float, float]], million: str, doubling: str) -> None:
    page = results("table1", [scored("gelu", *points)], token="move").page("t")
    line = cells(page, "gelu", "per doubling")
    assert (line["0.40 at"], line["0.40 at2"]) == (million, doubling)
    assert (line["points"], line["seen"]) == ("3", "4.0M")


def test_only_table1_has_the_section() -> None:
    rows = [scored("gelu", (1, 0.1), (2, 0.2), (4, 0.3))]
    for suite in (name for name, each in SUITES.items() if not each.of_text):
        assert ("What would reach" in results(suite, rows).page("t")) == (suite == "table1")
    assert "What would reach" not in results("table1", [row("gelu")]).page("t")
