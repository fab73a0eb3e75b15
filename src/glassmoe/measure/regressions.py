"""Logistic regressions of one number each, many at a time: what scikit-learn's `LogisticRegression(solver=
"newton-cholesky", class_weight="balanced", max_iter=200)` finds one by one.

Both take Newton steps from 0 until the gradient and half the squared Newton decrement are at most 1e-4. A regression
whose number is constant stays at 0, where scikit-learn follows rounding.

Legend: F regressions (one feature each), S samples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit

TOLERANCE = 1e-4
"""Largest entry of the gradient, and half the squared Newton decrement, where a regression ends."""
ITERATIONS, HALVINGS = 200, 30
ENOUGH = 2.0**-11
"""Share of the decrease which the slope promises that a step of Newton's has to bring (Armijo)."""
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class Regressions(NamedTuple):
    """Sample x is positive by regression f where `slope_F[f] * x + intercept_F[f] > 0`."""

    slope_F: Floats
    intercept_F: Floats


class _Derivatives(NamedTuple):
    """Of the loss of each regression, by slope and level; the level is the logit at the mean of x."""

    slope_F: Floats
    level_F: Floats
    slope_slope_F: Floats
    slope_level_F: Floats
    level_level_F: Floats


class _Problem(NamedTuple):
    x_FS: Floats
    """Centred, so that slope and level hardly depend on each other."""
    mean_F: Floats
    positive_S: Bools
    weight_S: Floats
    """Sum to 1/2 for each side."""
    ridge: float

    def part(self, rows: npt.NDArray[np.intp]) -> _Problem:
        return self if len(rows) == len(self.x_FS) else self._replace(x_FS=self.x_FS[rows], mean_F=self.mean_F[rows])

    def derivatives(self, slope_F: Floats, level_F: Floats) -> _Derivatives:
        p_FS = expit(slope_F[:, None] * self.x_FS + level_F[:, None])
        error_FS = self.weight_S * (p_FS - self.positive_S)
        curve_FS = self.weight_S * p_FS * (1 - p_FS)
        curve_x_FS = curve_FS * self.x_FS
        return _Derivatives(
            np.einsum("fs,fs->f", error_FS, self.x_FS) + self.ridge * slope_F,
            error_FS.sum(1),
            np.einsum("fs,fs->f", curve_x_FS, self.x_FS) + self.ridge,
            curve_x_FS.sum(1),
            curve_FS.sum(1),
        )

    def loss(self, slope_F: Floats, level_F: Floats) -> Floats:
        z_FS = slope_F[:, None] * self.x_FS + level_F[:, None]
        loss_F: Floats = (np.logaddexp(0, np.where(self.positive_S, -z_FS, z_FS)) * self.weight_S).sum(1)
        return loss_F + self.ridge / 2 * slope_F**2


def logistic_regressions(x_FS: npt.NDArray[np.floating], positive_S: Bools) -> Regressions:
    """The regressions of `positive_S` on each row of `x_FS`: L2 with C = 1 on the slope, both sides of equal weight.
    There is a positive sample and another."""
    samples, positive = len(positive_S), int(positive_S.sum())
    x_FS = x_FS.astype(np.float64)
    mean_F = x_FS.mean(1)
    weight_S = np.where(positive_S, 0.5 / positive, 0.5 / (samples - positive))
    problem = _Problem(x_FS - mean_F[:, None], mean_F, positive_S, weight_S, 1 / samples)
    slope_F, level_F = np.zeros(len(x_FS)), np.zeros(len(x_FS))
    at = problem.derivatives(slope_F, level_F)
    active = np.flatnonzero(np.ptp(x_FS, axis=1) > 0)
    for _ in range(ITERATIONS):
        if not len(active):
            break
        here = _Derivatives(*(each[active] for each in at))
        step_slope_F, step_level_F = _newton(here)
        half_decrement_F = -(here.slope_F * step_slope_F + here.level_F * step_level_F) / 2
        waiting, size = np.arange(len(active)), 1.0
        for _ in range(HALVINGS):
            rows = active[waiting]
            new_slope_F = slope_F[rows] + size * step_slope_F[waiting]
            new_level_F = level_F[rows] + size * step_level_F[waiting]
            some = problem.part(rows)
            there = some.derivatives(new_slope_F, new_level_F)
            good_F = _norm(there) <= _norm(_Derivatives(*(each[waiting] for each in here)))
            if not good_F.all():
                before_F = some.loss(slope_F[rows], level_F[rows])
                promised_F = 2 * ENOUGH * size * half_decrement_F[waiting]
                good_F |= some.loss(new_slope_F, new_level_F) <= before_F - promised_F
            slope_F[rows[good_F]], level_F[rows[good_F]] = new_slope_F[good_F], new_level_F[good_F]
            for each, new in zip(at, there, strict=True):
                each[rows[good_F]] = new[good_F]
            waiting, size = waiting[~good_F], size / 2
            if not len(waiting):
                break
        # By the intercept at 0 instead of the mean, as scikit-learn has it.
        by_slope_F = at.slope_F[active] + problem.mean_F[active] * at.level_F[active]
        largest_F = np.maximum(np.abs(by_slope_F), np.abs(at.level_F[active]))
        done_F = (largest_F <= TOLERANCE) & (half_decrement_F <= TOLERANCE)
        done_F[waiting] = True  # no step is better
        active = active[~done_F]
    return Regressions(slope_F, level_F - slope_F * mean_F)


def _newton(at: _Derivatives) -> tuple[Floats, Floats]:
    """The step to the lowest point of the parabola that has these derivatives."""
    determinant_F = at.slope_slope_F * at.level_level_F - at.slope_level_F**2
    determinant_F = np.maximum(determinant_F, np.finfo(np.float64).tiny)
    slope_F = -(at.level_level_F * at.slope_F - at.slope_level_F * at.level_F) / determinant_F
    level_F = -(at.slope_slope_F * at.level_F - at.slope_level_F * at.slope_F) / determinant_F
    return slope_F, level_F


def _norm(at: _Derivatives) -> Floats:
    return np.hypot(at.slope_F, at.level_F)
