"""Intervals, differences within seeds and answers by hand."""

import math

import pytest

from glassmoe.measure.intervals import interval
from glassmoe.papers.moex.claims import PAIRS, differences, order, paired
from glassmoe.papers.moex.paper import BASES, PAPER, PUBLISHED_LAYERS, published
from glassmoe.papers.moex.rows import MeasuredRow
from glassmoe.papers.moex.suites import SUITES
from result_rows import coder, row


def test_interval_by_hand() -> None:
    # 1, 2, 3: mean 2, standard deviation 1; the 97.5% point of Student's t with 2 degrees of freedom is 4.302653.
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert interval([0.5]) == (0.5, None)


def test_paired_differences_by_hand() -> None:
    rows = [row("gelu", 0, coverage=0.4), row("gelu", 1, coverage=0.5), row("gelu", 7, coverage=0.9)]
    rows += [row("moe-x", 1, coverage=0.7), row("moe-x", 0, coverage=0.5), row("moe-x", 2, coverage=0.1)]
    # Seeds 0 and 1 are shared: 0.1 and 0.2, deviation 0.0707107, t with 1 degree of freedom 12.706205.
    found = paired(rows, "moe-x", "gelu", "coverage")
    assert found is not None and found.n == 2
    assert found.mean == pytest.approx(0.15)
    assert found.half == pytest.approx(12.706205 * 0.0707107 / math.sqrt(2), rel=1e-5)
    assert paired(rows, "moe-x", "switch", "coverage") is None
    every = differences([*rows, row("switch", 0)])
    assert {(each.name, each.base) for each in every} == {("moe-x", "gelu")}  # switch has one seed
    assert {each.measure for each in every} == {"loss", "coverage", "held_out_coverage", "reconstruction"}
    both = differences([row(name, seed) for name in ("gelu", "switch") for seed in (0, 1)])
    assert {(each.name, each.base) for each in both} == {("switch", "gelu")}  # not the other way round as well


def test_values_are_those_of_the_best_layer() -> None:
    one = row("gelu", coverage=0.2)
    assert [one.value(m) for m in ("loss", "coverage", "held_out_coverage", "reconstruction")] == [0.6, 0.2, 0.1, 0.4]
    assert coder().value("loss") == 0.65
    bare = MeasuredRow(name="x", seed=0, model={})
    assert bare.value("loss") is None and bare.value("coverage") is None


def statements(gelu: list[float], moe_x: list[float], losses: tuple[float, float] = (0.6, 0.6)) -> dict[str, str]:
    rows = [row("gelu", seed, coverage=c, loss=losses[0]) for seed, c in enumerate(gelu)]
    rows += [row("moe-x", seed, coverage=c, loss=losses[1] + seed / 10_000) for seed, c in enumerate(moe_x)]
    return {each.claim: each.answer for each in order(rows)}


def test_answers_follow_the_interval() -> None:
    ahead = "moe-x is ahead of gelu in coverage"
    assert statements([0.2, 0.3, 0.4], [0.25, 0.35, 0.45 + 1e-6])[ahead] == "yes"
    assert statements([0.25, 0.35, 0.45 + 1e-6], [0.2, 0.3, 0.4])[ahead] == "no"
    # 0.1, 0, 0.05: mean 0.05, deviation 0.05, half 0.124.
    assert statements([0.2, 0.3, 0.4], [0.3, 0.3, 0.45])[ahead] == "undecided"
    assert statements([0.2], [0.9])[ahead] == "undecided"
    level = "moe-x is within 0.005 nats of gelu"
    # Differences d, d + 0.0001, d + 0.0002: half 0.00025.
    seeds = [0.2, 0.3, 0.4]
    for loss, answer in ((0.6, "yes"), (0.604, "yes"), (0.605, "undecided"), (0.606, "no"), (0.59, "no")):
        assert statements(seeds, seeds, (0.6, loss))[level] == answer
    assert set(statements(seeds, seeds)) == {
        level, ahead, "moe-x is ahead of gelu in held-out coverage", "moe-x is ahead of gelu in reconstruction",
    }  # fmt: skip


def test_what_the_papers_own_numbers_answer() -> None:
    rows = [row(name) for name in ("gelu", "switch", "moe-x", "moe-x-upcycled")]
    paper = {each.claim: each.paper for each in order(rows, "table1")}
    assert paper["moe-x-upcycled is ahead of switch in coverage"] == "yes"  # 0.428 and 0.424
    assert paper["moe-x is ahead of switch in coverage"] == "no"  # from scratch: 0.398
    assert paper["moe-x-upcycled is within 0.005 nats of gelu"] == "yes"  # 0.211 and 0.213
    assert paper["moe-x is within 0.005 nats of gelu"] is None  # Table 4 gives no loss
    assert paper["moe-x-upcycled is ahead of switch in held-out coverage"] is None
    assert all(each.paper is None for each in order(rows, "figure9"))
    apart = [row("gelu"), row("moe-x", apart=True)]
    assert order(apart) == []


def test_names_are_those_of_the_declared_rows() -> None:
    """A row that is renamed in a suite would silently lose the paper's numbers and its claims."""
    from glassmoe.config import ModelConfig

    declared = {name: {each.name for each in suite.rows(ModelConfig())} for name, suite in SUITES.items()}
    for suite, rows in PAPER.items():
        assert set(rows) <= declared[suite], suite
    assert {name for pair in PAIRS for name in pair} | {*BASES} <= set().union(*declared.values())


def test_published_numbers() -> None:
    best = published("table1", "moe-x-upcycled")
    assert best is not None and (best.table, best.loss, best.coverage, best.reconstruction) == (1, 0.211, 0.428, 0.840)
    assert published("figure3", "relu-d64-x4") is None and published("table1", "sae-topk") is None
    for layers in PUBLISHED_LAYERS.values():
        assert all(len(values) == 8 for values in layers.values())
        assert all(max(range(8), key=lambda i: values[i] or 0) == 5 for values in layers.values())
