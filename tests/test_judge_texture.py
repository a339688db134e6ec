"""The guards against invented and missing texture, on constructed pictures."""

import numpy as np
import pytest

from titokc.judge.texture import busy_ratio, deviations, mean_psnr, smooth_ratio


def stripes(*amplitudes):
    """A 16x16 block for each amplitude: columns of 100 - a and 100 + a, whose deviation is a."""
    sign = np.where(np.arange(16) % 2, 1, -1)
    blocks = [np.broadcast_to((100 + amplitude * sign)[None, :, None], (16, 16, 3)) for amplitude in amplitudes]
    return np.concatenate(blocks, 1).astype(np.uint8)


def test_deviations_are_those_of_luma_in_whole_blocks():
    picture = np.pad(stripes(2, 40), ((0, 3), (0, 5), (0, 0)))
    assert deviations(picture) == pytest.approx([2, 40])
    green = np.zeros((16, 16, 3), np.uint8)
    green[::2, :, 1] = 100
    assert deviations(green) == pytest.approx([0.587 * 50])
    assert deviations(stripes(1)[:15]).shape == (0,)


def test_invented_texture_shows_in_smooth_blocks_only():
    originals, pictures = deviations(stripes(2, 1, 40, 9)), deviations(stripes(6, 3, 40, 1))
    assert smooth_ratio(originals, pictures) == pytest.approx(3)
    assert busy_ratio(originals, pictures) == pytest.approx(1)


def test_missing_texture_shows_in_busy_blocks_only():
    originals, pictures = deviations(stripes(2, 1, 40, 9)), deviations(stripes(2, 1, 10, 9))
    assert smooth_ratio(originals, pictures) == pytest.approx(1)
    assert busy_ratio(originals, pictures) == pytest.approx(0.25)


def test_nothing_to_compare_is_none():
    assert smooth_ratio(deviations(stripes(9)), deviations(stripes(9))) is None
    assert smooth_ratio(deviations(stripes(0)), deviations(stripes(1))) is None
    assert busy_ratio(np.zeros(0), np.zeros(0)) is None


def test_grain_does_not_change_the_psnr_of_means():
    assert mean_psnr(stripes(0), stripes(30)) == 100
    assert mean_psnr(stripes(0), stripes(0) + np.uint8(16)) == pytest.approx(20 * np.log10(255 / 16))
    assert mean_psnr(stripes(0)[:7], stripes(0)[:7]) is None
