"""Other scales of a skewed number, and the way back.

A linear model of the logarithm of a price sees factors where a model of the price sees sums. Both are fitted, and
their mean is what counts in the price's own unit. Sources: Duan 1983, Smearing Estimate, for the way back to a mean;
Beasley et al. 2009 for normal scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

LEAST_SKEW = 0.25
"""A target of a smaller skewness, without its sign, stays on its own scale."""
FEWEST_VALUES = 10
"""Numbers of fewer different values have no other scale."""
POINTS = 201
"""Places at which the curve of the ranks is known; the logarithm has four times as many."""
ERRORS = 50
"""Quantiles of a model's errors that the way back averages over."""
FARTHEST = 3.0
"""The logarithm goes on beyond the training rows by so many times their range."""
SMALLEST = 0.05
"""Values below this quantile of their sizes are small: there, the logarithm is nearly a straight line."""
NAMES = {"logarithm": 0, "ranks": 1}


@dataclasses.dataclass(frozen=True)
class Curve:
    """A rising curve from z of a target to a second z."""

    kind: str
    z: np.ndarray
    """(points,) rising, float64."""
    bent: np.ndarray
    """(points,) rising, float64: the second z at these places."""
    errors: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(1))
    """(errors,) quantiles of a model's errors in the second z, on rows that it did not see."""

    def there(self, z: np.ndarray) -> np.ndarray:
        """(rows,) the second z."""
        return np.interp(z, self.z, self.bent)

    def back(self, bent: np.ndarray) -> np.ndarray:
        """(rows, 1) float32: the mean of z where a model says `bent` and has these errors (Duan 1983)."""
        found = np.zeros(len(bent))
        for error in self.errors:
            found += np.interp(bent[:, 0] + error, self.bent, self.z)
        return (found / len(self.errors)).astype(np.float32)[:, None]

    def with_errors(self, errors: np.ndarray) -> Curve:
        """The same with the quantiles of a model's errors (rows,)."""
        return dataclasses.replace(self, errors=np.quantile(errors, (np.arange(ERRORS) + 0.5) / ERRORS))

    def tensors(self) -> dict[str, np.ndarray]:
        """The curve as arrays."""
        return {"z": self.z, "bent": self.bent, "errors": self.errors, "kind": np.array([NAMES[self.kind]])}

    @staticmethod
    def from_tensors(tensors: Mapping[str, np.ndarray]) -> Curve:
        """The curve that `tensors` made."""
        kind = list(NAMES)[int(tensors["kind"][0])]
        return Curve(kind, tensors["z"], tensors["bent"], tensors["errors"])


def curves(z: np.ndarray, middle: float) -> list[Curve]:
    """The scales to try for (rows,) z of the training targets, on which these are less skewed.

    `middle` is the mean of the target in standard deviations: the target itself is 0 at z = -middle.
    """
    if len(np.unique(z)) < FEWEST_VALUES or not float(z.std()) > 0 or abs(skewness(z)) < LEAST_SKEW:
        return []
    made = [_logarithm(z, middle), _ranks(z)]
    return [curve for curve in made if abs(skewness(curve.there(z))) < abs(skewness(z))]


def skewness(values: np.ndarray) -> float:
    """The third moment of (rows,) values in standard deviations; they are not all equal."""
    return float((((values - values.mean()) / values.std()) ** 3).mean())


def _standardised(kind: str, at: np.ndarray, bent: np.ndarray, z: np.ndarray) -> Curve:
    """The curve through the points, with a second z of mean 0 and deviation 1 on the training rows."""
    values = np.interp(z, at, bent)
    return Curve(kind, at, (bent - values.mean()) / max(float(values.std()), 1e-12))


def _logarithm(z: np.ndarray, middle: float) -> Curve:
    """asinh of the target in units of its small values: a logarithm that takes 0 and negative numbers too."""
    sizes = np.abs(z + middle)
    unit = max(float(np.quantile(sizes[sizes > 0], SMALLEST)), 1e-6 * float(sizes.max()))
    width = float(np.ptp(z))
    ends = np.arcsinh((np.array([z.min() - FARTHEST * width, z.max() + FARTHEST * width]) + middle) / unit)
    # The points lie densely where the curve bends.
    bent = np.linspace(ends[0], ends[1], 4 * POINTS)
    return _standardised("logarithm", unit * np.sinh(bent) - middle, bent, z)


def _ranks(z: np.ndarray) -> Curve:
    """Normal scores of the ranks; equal values have the mean of theirs."""
    from scipy.special import ndtr, ndtri

    edge = float(ndtri(1 - 0.5 / len(z)))
    scores = np.linspace(-edge, edge, POINTS)
    shares = ndtr(scores)
    shares[[0, -1]] = 0, 1
    quantiles = np.quantile(z, shares)
    at, places = np.unique(quantiles, return_inverse=True)
    return _standardised("ranks", at, np.bincount(places, scores) / np.bincount(places), z)
