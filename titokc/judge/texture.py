"""Guards against invented and missing texture: luma deviations of 16x16 blocks, and PSNR of the means of 8x8 blocks.

Networks that judge pictures prefer any texture to none: a decoder that puts grain on sky and skin gains in LPIPS and in
Frechet distances. These figures catch it. Pictures are uint8 [H, W, 3]; NumPy alone.
"""

import numpy as np

from titokc.judge.pixels import decibels

SIDE = 16
SMOOTH = 3.0  # of 255
BUSIEST = 0.25
LUMA = (0.299, 0.587, 0.114)


def deviations(picture: np.ndarray) -> np.ndarray:
    """Standard deviation of luma (BT.601, 0 to 255) in each whole 16x16 block, row by row: float64 [blocks]."""
    return _blocks(picture @ np.asarray(LUMA), SIDE).std((1, 3)).ravel()


def smooth_ratio(originals: np.ndarray, pictures: np.ndarray) -> float | None:
    """The mean deviation in the originals' smooth blocks (under 3 of 255), over that of the originals there.

    Both: the `deviations` of the same blocks. 1 is right, more is invented texture. None without smooth blocks.
    """
    return _ratio(originals, pictures, originals < SMOOTH)


def busy_ratio(originals: np.ndarray, pictures: np.ndarray) -> float | None:
    """The same in the quarter of the blocks where the originals deviate most: less than 1 is missing texture."""
    return _ratio(originals, pictures, originals >= np.quantile(originals, 1 - BUSIEST)) if len(originals) else None


def mean_psnr(original: np.ndarray, picture: np.ndarray) -> float | None:
    """PSNR in dB, at most 100, of the means of whole 8x8 blocks; None for pictures without one.

    Grain that is right in the mean does not lower it; a shift of colours or of edges does.
    """
    if min(original.shape[:2]) < 8:
        return None
    a, b = (_blocks(pixels.astype(np.float64), 8).mean((1, 3)) for pixels in (original, picture))
    return decibels(float(np.square(a - b).mean()))


def _blocks(pixels: np.ndarray, side: int) -> np.ndarray:
    """[H, W, ...] -> [H // side, side, W // side, side, ...]; what is left over at the edges is left out."""
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    return pixels[: rows * side, : columns * side].reshape(rows, side, columns, side, *pixels.shape[2:])


def _ratio(originals: np.ndarray, pictures: np.ndarray, where: np.ndarray) -> float | None:
    whole = float(originals[where].sum())
    return float(pictures[where].sum()) / whole if whole else None
