"""What the numbers say and how surely: bootstrap intervals, paired differences, Bjontegaard deltas. numpy and scipy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000
FEWEST = 6


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % percentile interval of the mean under resampling with replacement (Efron 1979).

    10,000 resamples from a generator of one seed, so that the same values give the same interval. One value has
    no spread: its interval is the value.
    """
    array = np.asarray(values, np.float64)
    generator = np.random.default_rng(0)
    means = np.concatenate(
        [array[generator.integers(0, len(array), (100, len(array)))].mean(1) for _ in range(RESAMPLES // 100)]
    )
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """Of two codecs on the same pictures: the mean of first - second, its 95 % interval, and Wilcoxon's p-value.

    `wins`: on how many of the `count` pictures the first is better. `p_value` is None if all differences are 0.
    """

    mean: float
    low: float
    high: float
    wins: int
    count: int
    p_value: float | None

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 0, on at least six pictures (fewer cannot reach p < 0.05 at all)."""
        return self.count >= FEWEST and (self.low > 0 or self.high < 0)


def paired_difference(first: Sequence[float], second: Sequence[float], higher_is_better: bool = True) -> Difference:
    """The difference on each picture, summarised; both sequences are in the same order of pictures."""
    from scipy.stats import wilcoxon

    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    low, high = bootstrap_interval(differences.tolist())
    wins = int(((differences > 0) if higher_is_better else (differences < 0)).sum())
    p_value = float(wilcoxon(differences).pvalue) if differences.any() else None
    return Difference(float(differences.mean()), low, high, wins, len(differences), p_value)


class Curve(NamedTuple):
    """A rate-distortion curve: whole-file sizes in bytes, and a quality that grows with them (PSNR in dB)."""

    size_bytes: Sequence[float]
    quality: Sequence[float]


def bd_rate(curve: Curve, reference: Curve) -> float | None:
    """Bjontegaard's rate difference in percent: the mean change of size at equal quality; negative is smaller.

    Mean of the difference in log size over the qualities that both curves reach (VCEG-M33), with monotone cubic
    interpolation (PCHIP) instead of one polynomial. None where the curves do not overlap, or one has fewer than three
    points or does not grow.
    """
    mean = _mean_gap(*((each.quality, np.log(each.size_bytes)) for each in (curve, reference)))
    return None if mean is None else (float(np.exp(mean)) - 1) * 100


def bd_quality(curve: Curve, reference: Curve) -> float | None:
    """Bjontegaard's quality difference (BD-PSNR in dB): the mean gain at equal size, over the log sizes shared.

    None as for `bd_rate`.
    """
    return _mean_gap(*((np.log(each.size_bytes), each.quality) for each in (curve, reference)))


def _mean_gap(first: tuple[Any, Any], second: tuple[Any, Any]) -> float | None:
    """The mean difference of two curves y(x) over the range of x that they share."""
    from scipy.interpolate import PchipInterpolator

    if any(len(x) < 3 or min(np.diff(x)) <= 0 or min(np.diff(y)) <= 0 for x, y in (first, second)):
        return None
    low, high = max(first[0][0], second[0][0]), min(first[0][-1], second[0][-1])
    if low >= high:
        return None
    areas = [float(PchipInterpolator(x, y).integrate(low, high)) for x, y in (first, second)]
    return (areas[0] - areas[1]) / float(high - low)
