"""How near a decoded picture is to the original: PSNR, SSIM, MS-SSIM of two 8-bit RGB pictures of one size.

Networks and distances between sets of pictures are in `titokc.bench.networks`.
"""

import math

import numpy as np
from PIL import Image

# Wang, Simoncelli, Bovik 2003, "Multi-scale structural similarity for image quality assessment", section 3.2.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW_SIGMA = 1.5
_WINDOW_RADIUS = 5
IDENTICAL_PSNR = 100.0


def psnr(original: Image.Image, picture: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB, peak 255, over all pixels of R, G and B together; 100 if identical."""
    difference = np.asarray(original, np.int32) - np.asarray(picture, np.int32)
    mse = float(np.mean(difference * difference))
    return min(IDENTICAL_PSNR, 10 * math.log10(255 * 255 / mse)) if mse else IDENTICAL_PSNR


def ssim(original: Image.Image, picture: Image.Image) -> float:
    """Structural similarity (Wang et al. 2004) by scikit-image, at most 1.

    Gaussian window (sigma 1.5, 11x11), population covariance, K1 0.01, K2 0.03, data range 255; the mean of the
    R, G and B channels. Pictures under 11 pixels on a side have none: ValueError.
    """
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(
            np.asarray(original),
            np.asarray(picture),
            gaussian_weights=True,
            sigma=_WINDOW_SIGMA,
            use_sample_covariance=False,
            data_range=255,
            channel_axis=2,
        )
    )


def ms_ssim(original: Image.Image, picture: Image.Image) -> float:
    """Multi-scale SSIM (Wang et al. 2003), at most 1: five scales, 2x2 averages between them.

    Window, constants and data range as in `ssim`, without the border that the window does not fill (as in the authors'
    code and the PyTorch ports); computed for R, G and B, negative terms as 0, and averaged. The smallest scale must
    hold a window: pictures under 176 pixels on a side have none: ValueError.
    """
    from scipy.ndimage import gaussian_filter1d

    if min(original.size) < (2 * _WINDOW_RADIUS + 1) * 2 ** (len(MS_SSIM_WEIGHTS) - 1):
        raise ValueError(f"MS-SSIM needs 176 pixels a side, the picture is {original.width}x{original.height}")

    def mean(pixels: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            pixels = gaussian_filter1d(pixels, _WINDOW_SIGMA, axis=axis, radius=_WINDOW_RADIUS)
        return pixels[_WINDOW_RADIUS:-_WINDOW_RADIUS, _WINDOW_RADIUS:-_WINDOW_RADIUS]

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    x, y = (np.asarray(image, np.float64) for image in (original, picture))
    product = np.ones(3)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        mean_x, mean_y = mean(x), mean(y)
        variances = mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2
        term = (2 * (mean(x * y) - mean_x * mean_y) + c2) / (variances + c2)
        if scale == len(MS_SSIM_WEIGHTS) - 1:
            term *= (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        product *= np.maximum(term.mean(axis=(0, 1)), 0) ** weight
        x, y = _halved(x), _halved(y)
    return float(product.mean())


def _halved(pixels: np.ndarray) -> np.ndarray:
    """Averages of 2x2 pixels; an odd last row or column is left out."""
    height, width = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
    pixels = pixels[:height, :width]
    return pixels.reshape(height // 2, 2, width // 2, 2, -1).mean(axis=(1, 3))
