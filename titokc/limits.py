"""What readers accept of strangers' files before they allocate; `titokc.container` and `titokc.imaging` ask."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a reader accepts before anything is allocated: pixels, pixels a side, indices in all tiles together."""

    max_pixels: int = 89_478_485
    max_side: int = 16_384
    max_indices: int = 1 << 20


DEFAULT_LIMITS = Limits()
