"""How pictures become bytes and bytes pictures, and what is told of the result: the options of `titokc.codec`."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from titokc.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

    from titokc.container import Header
    from titokc.imaging import Background
    from titokc.tiling import Grid

EFFORTS = range(10)
DEFAULT_EFFORT = 6
# Up to so many bytes, for which choosing among grids takes several times as long as one search anyway.
BUDGET_EFFORT = 9
SMALL_BUDGET = 600
# Where it goes by more than pixels a search gains for longer: twice as much for the natural look as with effort 6.
TUNED_EFFORT = 8
TUNES = ("psnr", "natural")
FORMS = ("tok", "bare", "base64")
LOOKS = ("faithful", "natural")


@dataclass(frozen=True)
class EncodeOptions:
    """How a picture becomes bytes.

    tokens: per tile, of those that the model can make; by default its most.
    tiles: "1x1" (the default: the whole picture in one square), "RxC", "auto", or (rows, columns).
    target_size: a budget in bytes: grid and tokens, where not given, are those whose decoded picture is nearest to the
        original (PSNR) among those that fit; the result is never larger. Tiles get as many tokens as they have use for.
    target_psnr, target_ssim: the decoded picture is at least so near to the original (dB, SSIM), in the smallest file
        that is found. Instead of tokens and target_size.
    effort: 0..9, how long to search for tokens that decode to something nearer; 0 takes the nearest tokens (gains and
        times: `titokc.models.nano.search`). By default 6, with a target_size up to 600 it is 9, tuned for the
        natural look 8. Models that cannot search take no notice.
    tune: what the search makes nearer: "psnr", the faithful look's pixels, or "natural", these and how the natural look
        looks to EfficientNet-Lite0, which needs titokc[train] and the engine "torch".
    background: the colour under transparent pixels.
    form: "tok", "bare" (the payload alone, without header and checksum) or "base64" (that as base64url text). The last
        two say nothing of the grid, so that a budget alone does not choose one for them.
    psnr: whether `Encoded` says it, which takes a decoding.
    """

    tokens: int | None = None
    tiles: str | Grid | None = None
    target_size: int | None = None
    target_psnr: float | None = None
    target_ssim: float | None = None
    effort: int | None = None
    tune: str = "psnr"
    background: Background = "white"
    form: str = "tok"
    psnr: bool = False

    def __post_init__(self) -> None:
        _check_form(self.form)
        for name in ("tokens", "target_size"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name))
        check_number("effort", self.search_effort, 0)
        if self.search_effort not in EFFORTS:
            raise UsageError(f"effort {self.effort}: expected 0 to {EFFORTS[-1]}")
        if self.tune not in TUNES:
            raise UsageError(f"tune {self.tune!r}: expected one of {', '.join(TUNES)}")
        self._check_goal()

    @property
    def search_effort(self) -> int:
        """The effort, or the one that is meant where none is given."""
        if self.effort is not None:
            return self.effort
        if self.target_size is not None and self.target_size <= SMALL_BUDGET:
            return BUDGET_EFFORT
        return DEFAULT_EFFORT if self.tune == "psnr" else TUNED_EFFORT

    @property
    def goal(self) -> tuple[str, float] | None:
        """What the decoded picture is to reach: "psnr" or "ssim", and how much of it."""
        if self.target_psnr is not None:
            return "psnr", self.target_psnr
        return None if self.target_ssim is None else ("ssim", self.target_ssim)

    def _check_goal(self) -> None:
        if self.goal is None:
            return
        given = [name for name in ("tokens", "target_size", "target_psnr", "target_ssim") if getattr(self, name)]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)}: a quality that is to be reached decides alone")
        name, value = self.goal
        most = 100 if name == "psnr" else 1
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
            raise UsageError(f"target_{name} {value!r}: expected a number above 0, at most {most}")


@dataclass(frozen=True)
class DecodeOptions:
    """How bytes become a picture.

    size: (width, height) of the result instead of the original's.
    partial: accept files that were cut short anywhere after the header, and decode what is there.
    form: "tok", or "bare" and "base64" for a payload of this codec's model. The number of tokens then follows from its
        length; `size` (default: the model's own square) and `tiles` are what the encoder had.
    look: one of the model's ways to make a picture; by default its usual one.
    """

    size: tuple[int, int] | None = None
    partial: bool = False
    form: str = "tok"
    tiles: str | Grid = "1x1"
    look: str = ""

    def __post_init__(self) -> None:
        _check_form(self.form)
        if self.look and self.look not in LOOKS:
            raise UsageError(f"look {self.look!r}: expected {' or '.join(LOOKS)}")
        if self.size is not None:
            if not isinstance(self.size, (tuple, list)) or len(self.size) != 2:
                raise UsageError(f"size {self.size!r}: expected (width, height)")
            for number in self.size:
                check_number("size", number)


@dataclass(frozen=True)
class Encoded:
    """A picture's bytes, and what they do not all say themselves: size, grid and tokens (`header`), and what one may
    want to know (`notes`: only the first frame of several, a colour profile that was ignored). psnr: in dB, if asked
    for."""

    data: bytes
    header: Header
    notes: tuple[str, ...] = ()
    psnr: float | None = None


@dataclass(frozen=True)
class Decoded:
    """A picture, the header of what it was made from (with the tokens that are really there), and what one may want to
    know of it (`notes`)."""

    picture: Image.Image
    header: Header
    notes: tuple[str, ...] = ()


def check_number(name: str, value: Any, least: int = 1) -> None:
    """UsageError for what is no whole number of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise UsageError(f"{name} {value!r}: expected a whole number, found {type(value).__name__}") from None
    if number < least:
        raise UsageError(f"{name} {number}: expected {least} or more")


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise UsageError(f"form {form!r}: expected one of {', '.join(FORMS)}")
