"""General image formats, and the best file of one within a budget: every sensible downscale, filter, quality, variant.

"Best" is the highest PSNR once the small picture is enlarged again, by the better of bicubic and Lanczos, which costs
the baseline no byte. Enlarging is linear, so the error of every small candidate follows from a small projection of
the picture instead of an enlargement each; the few best are then enlarged, rounded and measured for real.
"""

from __future__ import annotations

import io
import math
from abc import abstractmethod
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from titokc.bench.contenders.interface import (
    ENLARGERS,
    RESAMPLING,
    Contender,
    Found,
    Impossible,
    Point,
    better_enlarged,
    measured,
)
from titokc.judge.pixels import decibels

SMALLEST_SIDE = 4
CLOSE_DB = 0.5  # what is farther below the best so far is left out of the next step
FAR_DB = 1.5  # three sizes in a row this far below a smaller one: larger ones are not tried
SLACK = 1.25  # nor those after three in a row whose coarsest file is so many times the budget
# Sides up to this are all tried: such files are one block, nearly all of it header, and neither grow with the side nor
# get better steadily. Where none fits but some nearly do, one of up to four times this side may: a single colour.
BLOCK = 16
MEASURED = 8
LARGE, FEWEST = 256, 4  # pictures with a longer side are looked at a third as closely: neighbouring sizes differ less


@lru_cache(maxsize=256)
def _enlarging(small: int, large: int, enlarger: str) -> tuple[np.ndarray, np.ndarray]:
    """Q [large, small] and R [small, small] with Q R = the matrix by which Pillow enlarges a column of pixels."""
    columns = Image.fromarray(np.eye(small, dtype=np.float32)).resize((small, large), RESAMPLING[enlarger])
    q, r = np.linalg.qr(np.asarray(columns, np.float64))
    return q.astype(np.float32), r.astype(np.float32)


class _Size:
    """A picture's error at one reduced size: exact for any small picture, up to rounding and clipping to 8 bits.

    With U = Q R for the rows, V = P S for the columns and the picture Y, |U X V' - Y|^2 is
    |R X S' - Q' Y P|^2 + |Y|^2 - |Q' Y P|^2, and the last two terms bound it from below for every X.
    """

    def __init__(self, pixels: np.ndarray, size: tuple[int, int]) -> None:
        """pixels: float32 [3, H, W]; size: (width, height) of the small pictures."""
        self.count = pixels.size
        self.ways = []
        for way in ENLARGERS:
            q, r = _enlarging(size[1], pixels.shape[1], way)
            p, s = _enlarging(size[0], pixels.shape[2], way)
            inside = q.T @ pixels @ p
            self.ways.append((r, s, inside, _energy(pixels) - _energy(inside)))

    @property
    def bound(self) -> float:
        """No picture of this size comes nearer than this PSNR (dB)."""
        return decibels(min(rest for *_, rest in self.ways) / self.count)

    def psnr(self, small: Image.Image) -> float:
        """PSNR (dB) of this small picture, enlarged by the better filter."""
        x = np.asarray(small, np.float32).transpose(2, 0, 1)
        return decibels(min(_energy(r @ x @ s.T - inside) + rest for r, s, inside, rest in self.ways) / self.count)


def _energy(pixels: np.ndarray) -> float:
    return float(np.square(pixels, dtype=np.float64).sum())


class Combination(NamedTuple):
    """A reduced picture, a variant and a finish (their indices): what a quality has yet to be found for."""

    side: int
    kind: str
    variant: int
    finish: int = 0


class Format(Contender):
    """A general image format: a point is a picture size, the filter that reduced it to that, and a quality.

    `ladder`: values of "quality" in order of growing files. `variants`: further settings, as sets of keys of a point;
    sizes are chosen with the first one that fits, or with each (`sizes_by_variant`). `finishes`: settings that change
    the decoded picture and not the file's length, tried on the best files alone. `breadth` and `around`: how many
    combinations the search looks at closely, and how many steps of the ladder below and above the expected one; less
    where files are slow. `longest_side`: of a picture that it can hold, in pixels.
    """

    ladder: tuple[float, ...]
    variants: tuple[Point, ...] = ({},)
    finishes: tuple[Point, ...] = ({},)
    breadth = 24
    around = (4, 16)
    longest_side = 65_535
    sizes_by_variant = False

    def encode(self, image: Image.Image, point: Point) -> bytes:
        size = (point["width"], point["height"])
        return self.save(image.resize(size, RESAMPLING[point["filter"]]) if size != image.size else image, point)

    @abstractmethod
    def save(self, image: Image.Image, point: Point) -> bytes:
        """The picture as it is -> a whole file, at this quality and variant."""

    def decode(self, data: bytes) -> Image.Image:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.convert("RGB")

    def best(self, picture: Image.Image, *budgets: int) -> list[Found | Impossible]:
        search = _FormatSearch(self, picture)
        return [_Narrowing(search, budget).best() for budget in budgets]

    def floor(self, picture: Image.Image) -> Found | Impossible:
        if max(picture.size) > self.longest_side:
            return Impossible(None)
        size = {"width": picture.width, "height": picture.height, "filter": "lanczos", "quality": self.ladder[0]}
        points = [size | variant | self.finishes[0] for variant in self.variants]
        data, point = min(((self.encode(picture, point), point) for point in points), key=lambda file: len(file[0]))
        return measured(self, picture, point, data)


def reduced(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """The size with this long side and the same aspect ratio, at least one pixel each way."""
    scale = long_side / max(size)
    return max(1, math.floor(size[0] * scale + 0.5)), max(1, math.floor(size[1] * scale + 0.5))


class _FormatSearch:
    """Files and their scores, made when asked for and kept, for all budgets of a picture."""

    def __init__(self, codec: Format, image: Image.Image) -> None:
        self.codec = codec
        self.image = image
        self.pixels = np.asarray(image, np.float32).transpose(2, 0, 1)
        self.files: dict[tuple[Combination, int], bytes] = {}
        self.scores: dict[tuple[Combination, int], float] = {}
        self.sizes: dict[int, _Size] = {}
        self.pictures: dict[tuple[int, str], Image.Image] = {}

    def point(self, combination: Combination, step: int) -> Point:
        width, height = reduced(self.image.size, combination.side)
        point = {"width": width, "height": height, "filter": combination.kind, "quality": self.codec.ladder[step]}
        return point | self.codec.variants[combination.variant] | self.codec.finishes[combination.finish]

    def file(self, combination: Combination, step: int) -> bytes:
        """The file with quality number `step` of the ladder."""
        key = (combination, step)
        if key not in self.files:
            picture = self._reduced(combination.side, combination.kind)
            self.files[key] = self.codec.save(picture, self.point(combination, step))
        return self.files[key]

    def score(self, combination: Combination, step: int) -> float:
        """Its PSNR in dB, enlarged."""
        key = (combination, step)
        if key not in self.scores:
            picture = self.codec.decode(self.file(combination, step))
            if self._is_large(combination.side):
                _, self.scores[key] = better_enlarged(self.image, picture)
            else:
                self.scores[key] = self._size(combination.side).psnr(picture)
        return self.scores[key]

    def bound(self, side: int) -> float:
        """No file of a picture reduced to `side` has a higher PSNR (dB)."""
        return math.inf if self._is_large(side) else self._size(side).bound

    def _is_large(self, side: int) -> bool:
        """Whether enlarging is cheaper than projecting."""
        return 2 * side > max(self.image.size)

    def _reduced(self, side: int, kind: str) -> Image.Image:
        if (side, kind) not in self.pictures:
            self.pictures[side, kind] = self.image.resize(reduced(self.image.size, side), RESAMPLING[kind])
        return self.pictures[side, kind]

    def _size(self, side: int) -> _Size:
        if side not in self.sizes:
            self.sizes[side] = _Size(self.pixels, reduced(self.image.size, side))
        return self.sizes[side]


class _Narrowing:
    """The search within one budget; what it tries does not depend on other budgets.

    `steps`: for each combination tried, the finest quality that fits.
    """

    def __init__(self, search: _FormatSearch, budget: int) -> None:
        self.search = search
        self.codec = search.codec
        self.budget = budget
        large = max(search.image.size) > LARGE
        self.breadth = max(FEWEST, self.codec.breadth // 3) if large else self.codec.breadth
        self.steps: dict[Combination, int] = {}

    def best(self) -> Found | Impossible:
        tried = [side for side in coarse_sides(self.search.image.size) if side <= self.codec.longest_side]
        for variant in range(len(self.codec.variants)):
            self._try_sides(tried, variant)
            if self.steps and not self.codec.sizes_by_variant:
                break
        if not self.steps:
            return Impossible(min(len(data) for data in self.search.files.values()))
        self._refine_sides(tried)
        for near in self._leaders()[: self.breadth]:
            for kind in RESAMPLING:
                self._attempt(near._replace(kind=kind), self.steps[near])
        for near in self._leaders()[: self.breadth]:
            for variant in range(len(self.codec.variants)):
                self._attempt(near._replace(variant=variant), self.steps[near])
        finalists = {
            key: self.search.score(*key) for near in self._leaders()[: self.breadth] for key in self._around(near)
        }
        for near, step in self._ranked(finalists):
            for finish in range(1, len(self.codec.finishes)):
                key = (near._replace(finish=finish), step)
                if self._fits(*key):
                    finalists[key] = self.search.score(*key)
        image, files = self.search.image, self.search.files
        return max(
            (measured(self.codec, image, self.search.point(*key), files[key]) for key in self._ranked(finalists)),
            key=lambda found: found.psnr or 0,
        )

    @staticmethod
    def _ranked(finalists: dict[tuple[Combination, int], float]) -> list[tuple[Combination, int]]:
        return sorted(finalists, key=lambda key: finalists[key], reverse=True)[:MEASURED]

    def _try_sides(self, sides: list[int], variant: int) -> None:
        """From the smallest, until no file fits any more, or larger pictures only get worse."""
        best, past, over, smallest = 0.0, 0, 0, math.inf
        known: list[Combination] = []
        for side in sides:
            combination = Combination(side, "lanczos", variant)
            if self.search.bound(side) < best:
                continue
            if len(self.search.file(combination, 0)) > SLACK * self.budget:
                over += 1
            elif self._attempt(combination, self._expected(side, known)):
                known, over = [*known[-1:], combination], 0
                past = past + 1 if self._score(combination) < best - FAR_DB else 0
                best = max(best, self._score(combination))
            smallest = min(smallest, len(self.search.file(combination, 0)))
            hopeful = not known and smallest <= SLACK * self.budget
            if side > BLOCK and (past >= 3 or (over >= 3 and (side > 4 * BLOCK or not hopeful))):
                return

    def _expected(self, side: int, known: list[Combination]) -> int:
        """The step at `side`, on a line over the side's logarithm through the last two that are known."""
        if not known:
            return len(self.codec.ladder) - 1
        last, step = known[-1], float(self.steps[known[-1]])
        if len(known) > 1:
            slope = (step - self.steps[known[0]]) / math.log(last.side / known[0].side)
            step += min(0, slope) * math.log(side / last.side)
        return max(0, round(step))

    def _refine_sides(self, tried: list[int]) -> None:
        """Halves the gaps on either side of the leaders, and of those that this brings up, until none is left."""
        while True:
            fresh: dict[int, tuple[Combination, int]] = {}
            for near in self._leaders()[: self.breadth]:
                at = tried.index(near.side)
                for other in (tried[max(0, at - 1)], tried[min(len(tried) - 1, at + 1)]):
                    side, step = (near.side + other) // 2, self.steps[near]
                    if side not in tried:
                        guess = (step + self.steps.get(near._replace(side=other), step)) // 2
                        fresh.setdefault(side, (near._replace(side=side), guess))
            if not fresh:
                return
            for combination, guess in fresh.values():
                self._attempt(combination, guess)
            tried = sorted((*tried, *fresh))

    def _attempt(self, combination: Combination, guess: int) -> bool:
        """Looks for the finest quality that fits; whether there is one."""
        if combination not in self.steps:
            step = self._finest(combination, guess)
            if step is None:
                return False
            self.steps[combination] = step
        return True

    def _finest(self, combination: Combination, guess: int) -> int | None:
        """The last step of the ladder whose file fits, if files grow along it; gallops from `guess`."""
        low, high, stride = -1, len(self.codec.ladder), 1
        while high - low > 1:
            if self._fits(combination, guess):
                low, guess = guess, guess + stride
            else:
                high, guess = guess, guess - stride
            stride *= 2
            if not low < guess < high:
                guess = (low + high) // 2
        return low if low >= 0 else None

    def _around(self, combination: Combination) -> list[tuple[Combination, int]]:
        """Files do not quite grow along the ladder: some qualities beyond the first that does not fit do fit."""
        below, above = self.codec.around
        step = self.steps[combination]
        steps = range(max(0, step - below), min(len(self.codec.ladder), step + above + 1))
        return [(combination, step) for step in steps if self._fits(combination, step)]

    def _leaders(self) -> list[Combination]:
        """Those near the best, best first."""
        ranked = sorted(self.steps, key=self._score, reverse=True)
        return [each for each in ranked if self._score(each) >= self._score(ranked[0]) - CLOSE_DB]

    def _score(self, combination: Combination) -> float:
        return self.search.score(combination, self.steps[combination])

    def _fits(self, combination: Combination, step: int) -> bool:
        return len(self.search.file(combination, step)) <= self.budget


def coarse_sides(size: tuple[int, int]) -> list[int]:
    """Long sides from `SMALLEST_SIDE` to the full one: steps of 6 %, and those that give whole blocks of 16 pixels.

    Of these the ones up to 16 blocks: what a block on the edge wastes is little after that.
    """
    longest = max(size)
    sides = {longest}
    side = float(min(SMALLEST_SIDE, longest))
    while side < longest:
        sides.add(round(side))
        side = max(side + 1, side * 1.06)
    sides |= {
        side
        for side in range(BLOCK, min(longest, 16 * BLOCK) + 1)
        if any(edge % BLOCK == 0 for edge in reduced(size, side))
    }
    return sorted(sides)
