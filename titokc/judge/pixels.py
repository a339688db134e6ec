"""How near a picture is to its original, pixel by pixel: PSNR, SSIM and MS-SSIM, with NumPy alone.

Pictures are arrays uint8 [H, W, 3] of one size. Distances that need a network are in `titokc.judge.networks`.
"""

import math

import numpy as np

IDENTICAL_PSNR = 100.0
# Wang, Simoncelli, Bovik 2003, "Multi-scale structural similarity for image quality assessment", section 3.2.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_RADIUS = 5
_WINDOW = np.exp(-((np.arange(-_RADIUS, _RADIUS + 1) / 1.5) ** 2) / 2)
_WINDOW /= _WINDOW.sum()
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(original: np.ndarray, picture: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, peak 255, over all pixels of R, G and B together; 100 if identical."""
    error = original.astype(np.int32)
    error -= picture
    error *= error
    return decibels(float(error.mean()))


def decibels(mse: float) -> float:
    """The PSNR of a mean squared error, peak 255; at most 100."""
    return min(IDENTICAL_PSNR, 10 * math.log10(255 * 255 / mse)) if mse > 0 else IDENTICAL_PSNR


def ssim(original: np.ndarray, picture: np.ndarray) -> float | None:
    """Structural similarity (Wang et al. 2004), at most 1; None for pictures under 11 pixels on a side.

    Gaussian window (sigma 1.5, 11x11) where it fits, population covariance, K1 0.01, K2 0.03, data range 255; the mean
    of R, G and B. These are scikit-image's figures with gaussian_weights and use_sample_covariance=False.
    """
    if min(original.shape[:2]) < len(_WINDOW):
        return None
    luminance, contrast = _terms(original.astype(np.float64), picture.astype(np.float64))
    return float((luminance * contrast).mean())


def ms_ssim(original: np.ndarray, picture: np.ndarray) -> float | None:
    """Multi-scale SSIM (Wang et al. 2003), at most 1: five scales, 2x2 averages between them.

    Window and constants as in `ssim`; of R, G and B, negative terms as 0, and averaged. The smallest scale must hold a
    window: None for pictures under 176 pixels on a side.
    """
    if min(original.shape[:2]) < len(_WINDOW) * 2 ** (len(MS_SSIM_WEIGHTS) - 1):
        return None
    x, y = original.astype(np.float64), picture.astype(np.float64)
    product = np.ones(3)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        luminance, term = _terms(x, y)
        if scale == len(MS_SSIM_WEIGHTS) - 1:
            term = luminance * term
        product *= np.maximum(term.mean(axis=(0, 1)), 0) ** weight
        x, y = _halved(x), _halved(y)
    return float(product.mean())


def _terms(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64 [H, W, 3] each -> SSIM's luminance and contrast-structure terms, [H - 10, W - 10, 3]."""
    mean_x, mean_y = _windowed(x), _windowed(y)
    squares = mean_x * mean_x + mean_y * mean_y
    product = mean_x * mean_y
    contrast = (2 * (_windowed(x * y) - product) + _C2) / (_windowed(x * x + y * y) - squares + _C2)
    return (2 * product + _C1) / (squares + _C1), contrast


def _windowed(pixels: np.ndarray) -> np.ndarray:
    """The Gaussian means of [H, W, C] where the window fits: [H - 10, W - 10, C]."""
    for axis in (0, 1):
        length = pixels.shape[axis] - 2 * _RADIUS
        shifted = (pixels[at : at + length] if axis == 0 else pixels[:, at : at + length] for at in range(len(_WINDOW)))
        pixels = sum(weight * part for weight, part in zip(_WINDOW, shifted, strict=True))
    return pixels


def _halved(pixels: np.ndarray) -> np.ndarray:
    """Averages of 2x2 pixels; an odd last row or column is left out."""
    height, width = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
    pixels = pixels[:height, :width]
    return pixels.reshape(height // 2, 2, width // 2, 2, -1).mean(axis=(1, 3))
