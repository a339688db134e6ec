"""What readers accept of strangers' files before they allocate; `titokc.container` and `titokc.imaging` ask."""

from dataclasses import dataclass

from titokc.errors import InputError, LimitExceededError


@dataclass(frozen=True)
class Limits:
    """What a reader accepts before anything is allocated: pixels, pixels a side, indices in all tiles together."""

    max_pixels: int = 89_478_485
    max_side: int = 16_384
    max_indices: int = 1 << 20

    @property
    def picture_bytes(self) -> int:
        """No picture file within the limits is longer: four samples of 32 bits a pixel, and 64 MiB for all the rest."""
        return self.max_pixels * 16 + (1 << 26)

    def check(self, size: tuple[int, int]) -> None:
        """Raises LimitExceededError for a picture (width, height) that is too large, InputError for an empty one."""
        width, height = size
        if width < 1 or height < 1:
            raise InputError(f"a picture of {width}x{height} pixels has no pixels")
        if width * height > self.max_pixels:
            raise LimitExceededError(
                f"{width}x{height} is {width * height} pixels, the limit is {self.max_pixels}", "max_pixels"
            )
        if max(width, height) > self.max_side:
            raise LimitExceededError(f"{width}x{height}: the limit is {self.max_side} pixels a side", "max_side")

    def check_indices(self, tiles: int, tokens: int, indices: int) -> None:
        """Raises LimitExceededError for too many indices in `tiles` that have `tokens` at most."""
        if indices > self.max_indices:
            equal = indices == tiles * tokens
            found = f"{tiles} tiles of {tokens} tokens" if equal else f"{indices} tokens in {tiles} tiles"
            raise LimitExceededError(f"{found}; the limit is {self.max_indices} in all", "max_indices")


DEFAULT_LIMITS = Limits()
