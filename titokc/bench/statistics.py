"""What the numbers say and how surely: bootstrap intervals, paired differences, Bjontegaard deltas. numpy and scipy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000
FEWEST = 6


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean under resampling with replacement (Efron 1979).

    10,000 resamples from a generator with this seed, so that the same values give the same interval. One value has
    no spread: its interval is the value.
    """
    array = np.asarray(values, np.float64)
    generator = np.random.default_rng(seed)
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


@dataclass(frozen=True)
class Curve:
    """A rate-distortion curve: whole-file sizes in bytes, and a quality that grows with them (PSNR in dB)."""

    size_bytes: Sequence[float]
    quality: Sequence[float]

    def usable(self) -> bool:
        """At least three points, sizes and qualities growing together: what the interpolation needs."""
        return len(self.size_bytes) >= 3 and bool(
            np.all(np.diff(self.size_bytes) > 0) and np.all(np.diff(self.quality) > 0)
        )


def bd_rate(curve: Curve, reference: Curve) -> float | None:
    """Bjontegaard's rate difference in percent: the mean change of size at equal quality; negative is smaller.

    Mean of the difference in log size over the qualities that both curves reach (VCEG-M33), with monotone cubic
    interpolation (PCHIP) instead of one polynomial. None where the curves do not overlap or are not usable.
    """
    logs = [np.log(np.asarray(each.size_bytes, np.float64)) for each in (curve, reference)]
    mean = _mean_gap(curve, reference, (curve.quality, reference.quality), (logs[0], logs[1]))
    return None if mean is None else (float(np.exp(mean)) - 1) * 100


def bd_quality(curve: Curve, reference: Curve) -> float | None:
    """Bjontegaard's quality difference (BD-PSNR in dB): the mean gain at equal size, over the log sizes shared.

    None as for `bd_rate`.
    """
    logs = [np.log(np.asarray(each.size_bytes, np.float64)) for each in (curve, reference)]
    return _mean_gap(curve, reference, (logs[0], logs[1]), (curve.quality, reference.quality))


def _mean_gap(
    curve: Curve,
    reference: Curve,
    along: tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray],
    of: tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray],
) -> float | None:
    """The mean of of[0] - of[1] over the range that both share on the axis `along`."""
    from scipy.interpolate import PchipInterpolator

    if not (curve.usable() and reference.usable()):
        return None
    low, high = max(along[0][0], along[1][0]), min(along[0][-1], along[1][-1])
    if low >= high:
        return None
    areas = [float(PchipInterpolator(x, y).integrate(low, high)) for x, y in zip(along, of, strict=True)]
    return (areas[0] - areas[1]) / float(high - low)
