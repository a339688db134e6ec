"""What a picture says of its colours without an ICC profile (PNG's gAMA, cHRM and cICP, AVIF's nclx) -> sRGB.

Transfer functions and primaries are numbered as in ITU-T H.273. Light is relative: 1 is the white of sRGB. Of brighter
light (PQ and HLG, whose white is at 203 cd/m2, ITU-R BT.2408) nothing is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

# x and y of white, red, green, blue.
_D65 = (0.3127, 0.329)
_SRGB = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_PRIMARIES = {
    1: _SRGB,
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
_AS_SRGB = {1, 2, 6, 13, 14, 15}
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
_PQ, _HLG = 16, 18
_WHITE = 203  # cd/m2
_ROWS = 256


@dataclass(frozen=True)
class Colours:
    """transfer: "srgb", "pq", "hlg", or the exponent from sample to light. primaries: of white, red, green, blue."""

    transfer: str | float = "srgb"
    primaries: tuple[float, ...] = _SRGB

    @property
    def is_srgb(self) -> bool:
        return self.transfer == "srgb" and self._has_srgb_primaries

    @property
    def _has_srgb_primaries(self) -> bool:
        return max(abs(a - b) for a, b in zip(self.primaries, _SRGB, strict=True)) < 0.004


def from_code_points(primaries: int, transfer: int) -> Colours | None:
    """Those of H.273; None for what is not known here."""
    found = _PRIMARIES.get(1 if primaries == 2 else primaries)
    name: str | float | None = {_PQ: "pq", _HLG: "hlg"}.get(transfer, _GAMMAS.get(transfer))
    if transfer in _AS_SRGB:
        name = "srgb"
    return None if found is None or name is None else Colours(name, found)


def from_gamma(gamma: float | None, primaries: tuple[float, ...] | None) -> Colours:
    """gAMA (samples are light to this power) and cHRM of a PNG. What is within 5 % of 1/2.2 means sRGB's curve."""
    transfer: str | float = "srgb"
    if gamma is not None and 0.05 <= gamma <= 5 and abs(gamma * 2.2 - 1) >= 0.05:
        transfer = 1 / gamma
    sound = primaries is not None and all(primaries[at] > 0 for at in range(1, 8, 2))
    return Colours(transfer, primaries if sound and primaries else _SRGB)


def to_srgb(image: Image.Image, colours: Colours) -> Image.Image:
    """An RGB or grey picture of 8 bits in these colours -> RGB in sRGB."""
    image = image.convert("RGB")
    if colours.is_srgb:
        return image
    light = _light(np.arange(256) / 255, colours.transfer)
    if colours._has_srgb_primaries and colours.transfer != "hlg":
        return image.point(np.rint(_encoded(light) * 255).astype(int).tolist() * 3)
    matrix = np.linalg.inv(_to_xyz(_SRGB)) @ _adaptation(colours.primaries) @ _to_xyz(colours.primaries)
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, _ROWS):
        rows = image.crop((0, top, image.width, min(top + _ROWS, image.height)))
        lights = light[np.asarray(rows)]
        if colours.transfer == "hlg":  # the display's gamma, of 1.2 at 1000 cd/m2
            luminance = lights @ np.array([0.2627, 0.678, 0.0593])
            lights = lights * (1000 / _WHITE * luminance**0.2)[..., None]
        samples = _encoded(lights @ matrix.T)
        result.paste(Image.fromarray(np.rint(samples * 255).astype(np.uint8)), (0, top))
    return result


def _light(samples: np.ndarray, transfer: str | float) -> np.ndarray:
    """0..1 -> light."""
    if not isinstance(transfer, str):
        return samples**transfer
    if transfer == "pq":  # SMPTE ST 2084
        root = samples ** (1 / 78.84375)
        light = (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
        return light * 10_000 / _WHITE
    if transfer == "hlg":  # ITU-R BT.2100
        return np.where(samples <= 0.5, samples**2 / 3, (np.exp((samples - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    return np.where(samples <= 0.04045, samples / 12.92, ((samples + 0.055) / 1.055) ** 2.4)


def _encoded(light: np.ndarray) -> np.ndarray:
    """Light -> sRGB's samples, 0..1."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def _xyz(x: float, y: float) -> np.ndarray:
    return np.array([x / y, 1, (1 - x - y) / y])


def _to_xyz(primaries: tuple[float, ...]) -> np.ndarray:
    columns = np.stack([_xyz(*primaries[at : at + 2]) for at in (2, 4, 6)], axis=1)
    return columns * np.linalg.solve(columns, _xyz(*primaries[:2]))


def _adaptation(primaries: tuple[float, ...]) -> np.ndarray:
    """From their white to that of sRGB (Bradford)."""
    cone = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    scale = (cone @ _xyz(*_D65)) / (cone @ _xyz(*primaries[:2]))
    return np.linalg.inv(cone) @ np.diag(scale) @ cone
