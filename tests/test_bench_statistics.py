"""Intervals, paired differences and Bjontegaard deltas of constructed cases."""

import pytest

pytest.importorskip("scipy")

from titokc.bench.statistics import Curve, bd_quality, bd_rate, bootstrap_interval, paired_difference

SIZES = [60, 108, 156, 204]
PSNR = [19.0, 20.0, 20.6, 21.0]


def test_bootstrap_is_seeded():
    assert bootstrap_interval(range(1, 11)) == (3.7, 7.3)
    assert bootstrap_interval(range(1, 11)) == bootstrap_interval(range(1, 11))


def test_bootstrap_of_one_value_is_that_value():
    assert bootstrap_interval([3.5]) == (3.5, 3.5)
    assert bootstrap_interval([2, 2, 2]) == (2, 2)


def test_paired_difference():
    found = paired_difference([2, 3, 4, 5, 6, 7], [1, 2, 2, 4, 4, 8])
    assert (found.mean, found.wins, found.count) == (1, 5, 6)
    assert (found.low, found.high) == pytest.approx((1 / 6, 5 / 3))
    assert found.p_value == pytest.approx(0.15625)
    assert found.significant


def test_paired_difference_where_lower_is_better():
    assert paired_difference([1, 1, 3], [2, 2, 2], higher_is_better=False).wins == 2


def test_no_difference_has_no_p_value():
    found = paired_difference([1, 2], [1, 2])
    assert (found.mean, found.p_value, found.significant) == (0, None, False)


def test_bd_rate_of_half_the_size_is_minus_50_percent():
    half = Curve([size / 2 for size in SIZES], PSNR)
    assert bd_rate(half, Curve(SIZES, PSNR)) == pytest.approx(-50)
    assert bd_rate(Curve(SIZES, PSNR), half) == pytest.approx(100)


def test_bd_quality_of_a_shifted_curve_is_the_shift():
    assert bd_quality(Curve(SIZES, [value + 0.75 for value in PSNR]), Curve(SIZES, PSNR)) == pytest.approx(0.75)


def test_bd_rate_is_over_the_shared_qualities_only():
    """Straight lines in log size: 1 dB an octave, one 0.5 dB above the other."""
    reference = Curve([64, 128, 256], [19, 20, 21])
    better = Curve([128, 256, 512], [20.5, 21.5, 22.5])
    assert bd_rate(better, reference) == pytest.approx((2**-0.5 - 1) * 100)
    assert bd_quality(better, reference) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "other",
    [
        Curve(SIZES, [value + 5 for value in PSNR]),  # no quality in common
        Curve(SIZES[:2], PSNR[:2]),  # too few points
        Curve(SIZES, [19, 18, 20, 21]),  # quality falls
    ],
)
def test_no_delta_without_overlap_or_usable_curves(other):
    assert bd_rate(other, Curve(SIZES, PSNR)) is None
