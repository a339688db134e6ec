"""PSNR, SSIM and MS-SSIM on constructed pictures, to literal numbers, and against scikit-image."""

import math

import numpy as np
import pytest
from PIL import Image

from titokc.judge.pixels import MS_SSIM_WEIGHTS, ms_ssim, psnr, ssim


def flat(value, size=(192, 176)):
    return np.full((*size[::-1], 3), value, np.uint8)


def test_psnr_of_a_constant_difference():
    assert psnr(flat(100), flat(116)) == pytest.approx(20 * math.log10(255 / 16))
    assert psnr(flat(0), flat(255)) == 0
    assert psnr(flat(255), flat(0)) == 0
    assert psnr(flat(7), flat(7)) == 100


def test_psnr_is_over_all_channels_together():
    red = flat(100, (4, 4)) + np.array([30, 0, 0], np.uint8)
    assert psnr(flat(100, (4, 4)), red) == pytest.approx(10 * math.log10(255**2 / (900 / 3)))


def test_ssim_of_flat_pictures_is_its_luminance_term():
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1)
    assert ssim(flat(100), flat(120)) == pytest.approx(expected)
    assert ms_ssim(flat(100), flat(120)) == pytest.approx(expected ** MS_SSIM_WEIGHTS[-1])


def test_ssim_and_ms_ssim_of_a_photo_and_its_thumbnail(photo):
    """Reference values: pytorch-msssim 1.0.0 gives 0.70513 and 0.96975 for the same pictures."""
    image = photo(200, 181, 1)
    picture = np.asarray(image.resize((30, 30)).resize(image.size, Image.Resampling.BICUBIC))
    original = np.asarray(image)
    assert ssim(original, picture) == pytest.approx(0.705124, abs=1e-5)
    assert ms_ssim(original, picture) == pytest.approx(0.969685, abs=1e-5)
    assert psnr(original, picture) == pytest.approx(31.111934, abs=1e-5)


@pytest.mark.parametrize("size", [(11, 11), (64, 31), (200, 181)])
def test_ssim_is_scikit_images(size):
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    rng = np.random.default_rng(1)
    original = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    picture = np.clip(original + rng.normal(0, 30, original.shape), 0, 255).astype(np.uint8)
    expected = structural_similarity(
        original, picture, gaussian_weights=True, use_sample_covariance=False, data_range=255, channel_axis=2
    )
    assert ssim(original, picture) == pytest.approx(expected, abs=1e-12)


def test_pictures_too_small_for_a_window_have_no_value():
    assert ssim(flat(1, (10, 300)), flat(1, (10, 300))) is None
    assert ssim(flat(1, (11, 300)), flat(1, (11, 300))) == 1
    assert ms_ssim(flat(1, (175, 300)), flat(1, (175, 300))) is None
    assert ms_ssim(flat(1, (176, 300)), flat(1, (176, 300))) == 1
