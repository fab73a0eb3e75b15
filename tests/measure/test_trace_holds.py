import numpy as np
import pytest

from glassmoe.measure.trace_holds import FOLLOWING, agreements, holds_of
from glassmoe.tracing.acting import compared
from glassmoe.tracing.agreement import ActedPair, TraceCheck
from glassmoe.tracing.holding import PATTERNS


def made_checks(prompts: int = 20) -> list[TraceCheck]:
    """Checks in which the model moves half as far as predicted, with noise where nothing is held and none where
    everything is."""
    draw = np.random.default_rng(0)
    checks = []
    for _ in range(prompts):
        pairs = []
        for node in range(4):
            effect = draw.normal()
            for change, sign in (("ablate", -1.0), ("double", 1.0)):
                noise = draw.normal() if change == "double" else 0.0
                pairs.append(ActedPair(node, "f", change, sign * effect, 0.5 * sign * effect + noise, noise))
        checks.append(TraceCheck(None, None, pairs, holding=[[p.predicted for p in pairs], [0.0 for _ in pairs]]))
    return checks


def test_agreements_are_over_all_prompts_with_intervals_over_prompts() -> None:
    checks = made_checks()
    nothing, following, every, silent = agreements(checks, ["everything", "a model that does not move"])
    pairs = [pair for check in checks for pair in check.pairs]
    together = compared(pairs)
    assert nothing.held == "nothing" and nothing.both is not None and nothing.both.value == together.correlation
    assert nothing.both.low < nothing.both.value < nothing.both.high < 1 and nothing.both.low > 0
    assert nothing.ablate is not None and nothing.ablate.value == pytest.approx(1.0)
    assert nothing.double is not None and nothing.double.value < 0.6
    assert nothing.same_direction is not None and nothing.same_direction.value == together.sign_agreement
    assert nothing.slope == pytest.approx(0.5, abs=0.2)
    assert following.held == FOLLOWING and following.double is not None and following.double.value > 0.8
    assert every.held == "everything" and every.both is not None and every.slope == pytest.approx(1.0)
    assert every.both.value == pytest.approx(1.0) and every.both.low == pytest.approx(every.both.high)
    assert silent.both is None and silent.slope == 0 and silent.same_direction is not None
    assert silent.same_direction.value == 0
    assert agreements([], ["x"]) == [] == agreements([TraceCheck(None, None, [])], ["x"])


def test_intervals_are_wider_for_fewer_prompts() -> None:
    wide, narrow = (agreements(made_checks(prompts), [])[0].both for prompts in (5, 80))
    assert wide is not None and narrow is not None and wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    assert agreements(made_checks(), []) == agreements(made_checks(), [])


def test_each_pattern_is_held_alone_and_all_but_each() -> None:
    holds = holds_of(PATTERNS)
    assert list(holds) == [
        *PATTERNS, "all but attention", "all but norms", "all but units", "all but experts and gates",
    ]  # fmt: skip
    assert holds["all but experts and gates"] == {"attention", "norms", "units"}
    dense = holds_of(("attention", "norms", "units"))
    assert dense["all but norms"] == {"attention", "units"} and "experts" not in dense and len(dense) == 6


def test_older_checks_without_following_predictions() -> None:
    checks = [
        TraceCheck(None, None, [ActedPair(p.node, p.name, p.change, p.predicted, p.measured) for p in check.pairs])
        for check in made_checks(4)
    ]
    assert [row.held for row in agreements(checks, [])] == ["nothing"]


def test_a_model_that_diverges_has_no_agreement() -> None:
    checks = made_checks(4)
    checks[1].holding[0][2] = float("inf")
    _, _, diverged, other = agreements(checks, ["norms", "units"])
    assert vars(diverged) == {**dict.fromkeys(vars(diverged)), "held": "norms"} and other.slope is not None
