"""The best file of a baseline within a budget: every sensible downscale, filter, quality and variant of its format.

"Best" is the highest PSNR once the small picture is enlarged again, by the better of bicubic and Lanczos, which costs
the baseline no byte. Enlarging is linear, so the error of every small candidate follows from a small projection of
the picture instead of an enlargement each; the few best are then enlarged, rounded and measured for real.
"""

from __future__ import annotations

import json
import math
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from titokc.bench.interface import RESAMPLING, Codec, Format, Placeholder, Point, reduced
from titokc.files import write_atomic
from titokc.judge.pixels import psnr

VERSION = 3  # of the search: part of the cache's keys
ENLARGERS = ("bicubic", "lanczos")
SMALLEST_SIDE = 4
CLOSE_DB = 0.5  # what is farther below the best so far is left out of the next step
FAR_DB = 1.5  # three sizes in a row this far below a smaller one: larger ones are not tried
SLACK = 1.25  # nor those after three in a row whose coarsest file is so many times the budget
# Sides up to this are all tried: such files are one block, nearly all of it header, and neither grow with the side nor
# get better steadily. Where none fits but some nearly do, one of up to four times this side may: a single colour.
BLOCK = 16
MEASURED = 8
LARGE, FEWEST = 256, 4  # pictures with a longer side are looked at a third as closely: neighbouring sizes differ less


@dataclass(frozen=True)
class Found:
    """The best file: the point that makes it, its bytes, the filter that enlarges it, and the PSNR in dB then."""

    point: Point
    data: bytes
    enlarge: str
    psnr: float


@dataclass(frozen=True)
class Impossible:
    """Nothing that the codec can write is small enough; `smallest` is the smallest file seen, in bytes, None if the
    format cannot hold so large a picture."""

    smallest: int | None


def best_files(
    codec: Format | Placeholder, image: Image.Image, budgets: Iterable[int]
) -> dict[int, Found | Impossible]:
    """Budgets in bytes -> the best whole file of `image` within each."""
    search = _FormatSearch(codec, image) if isinstance(codec, Format) else _PlaceholderSearch(codec, image)
    return {budget: search.best(budget) for budget in sorted(set(budgets))}


def floor_file(codec: Format, image: Image.Image) -> Found | Impossible:
    """The smallest file that the format makes without reducing the picture first."""
    if max(image.size) > codec.longest_side:
        return Impossible(None)
    size = {"width": image.width, "height": image.height, "filter": "lanczos", "quality": codec.ladder[0]}
    files = [(codec.encode(image, size | variant), size | variant) for variant in codec.variants]
    data, point = min(files, key=lambda file: len(file[0]))
    return _measured(codec, image, point, data)


def enlarged(picture: Image.Image, size: tuple[int, int], enlarger: str) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, RESAMPLING[enlarger])


def _measured(codec: Codec, image: Image.Image, point: Point, data: bytes) -> Found:
    picture = codec.decode(data)
    scores = {way: _psnr(image, enlarged(picture, image.size, way)) for way in ENLARGERS}
    way = max(scores, key=lambda way: scores[way])
    return Found(point, data, way, scores[way])


def _psnr(image: Image.Image, picture: Image.Image) -> float:
    return psnr(np.asarray(image), np.asarray(picture))


class _PlaceholderSearch:
    """Tries every point."""

    def __init__(self, codec: Placeholder, image: Image.Image) -> None:
        self.found = [_measured(codec, image, point, codec.encode(image, point)) for point in codec.points]

    def best(self, budget: int) -> Found | Impossible:
        fitting = [found for found in self.found if len(found.data) <= budget]
        if not fitting:
            return Impossible(min(len(found.data) for found in self.found))
        return max(fitting, key=lambda found: found.psnr)


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
        return _decibels(min(rest for *_, rest in self.ways) / self.count)

    def psnr(self, small: Image.Image) -> float:
        """PSNR (dB) of this small picture, enlarged by the better filter."""
        x = np.asarray(small, np.float32).transpose(2, 0, 1)
        return _decibels(min(_energy(r @ x @ s.T - inside) + rest for r, s, inside, rest in self.ways) / self.count)


def _energy(pixels: np.ndarray) -> float:
    return float(np.square(pixels, dtype=np.float64).sum())


def _decibels(mse: float) -> float:
    return 10 * math.log10(255 * 255 / max(mse, 1e-6))


class Combination(NamedTuple):
    """A reduced picture and a variant (its index): what a quality has yet to be found for."""

    side: int
    kind: str
    variant: int


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

    def best(self, budget: int) -> Found | Impossible:
        return _Narrowing(self, budget).best()

    def point(self, combination: Combination, step: int) -> Point:
        width, height = reduced(self.image.size, combination.side)
        point = {"width": width, "height": height, "filter": combination.kind, "quality": self.codec.ladder[step]}
        return point | self.codec.variants[combination.variant]

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
                self.scores[key] = max(_psnr(self.image, enlarged(picture, self.image.size, way)) for way in ENLARGERS)
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
        ranked = sorted(finalists, key=lambda key: finalists[key], reverse=True)[:MEASURED]
        image, files = self.search.image, self.search.files
        return max(
            (_measured(self.codec, image, self.search.point(*key), files[key]) for key in ranked),
            key=lambda found: found.psnr,
        )

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


class Cache:
    """Search results on disk: a JSON file for each codec and picture, safe to share between processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def best_files(
        self, codec: Format | Placeholder, image: Image.Image, budgets: Sequence[int]
    ) -> dict[int, Found | Impossible]:
        """As the function of the same name; searches only what is not there yet."""
        known = self._read(codec, image)
        absent = [budget for budget in budgets if str(budget) not in known]
        if absent:
            known |= {str(budget): _to_json(found) for budget, found in best_files(codec, image, absent).items()}
            self._write(codec, image, known)
        return {budget: _from_json(known[str(budget)]) for budget in budgets}

    def floor_file(self, codec: Format, image: Image.Image) -> Found | Impossible:
        """As the function of the same name."""
        known = self._read(codec, image)
        if "floor" not in known:
            known["floor"] = _to_json(floor_file(codec, image))
            self._write(codec, image, known)
        return _from_json(known["floor"])

    def _path(self, codec: Codec, image: Image.Image) -> Path:
        key = sha256(f"{VERSION} {codec.version} {image.size} ".encode() + image.tobytes()).hexdigest()
        return self.folder / codec.name / f"{key[:32]}.json"

    def _read(self, codec: Codec, image: Image.Image) -> dict[str, Any]:
        try:
            return json.loads(self._path(codec, image).read_bytes())["found"]
        except (OSError, ValueError, KeyError):  # absent or damaged: searched again
            return {}

    def _write(self, codec: Codec, image: Image.Image, known: dict[str, Any]) -> None:
        text = json.dumps({"codec": codec.name, "version": codec.version, "found": known}, indent=1)
        write_atomic(self._path(codec, image), text.encode())


def _to_json(found: Found | Impossible) -> dict[str, Any]:
    if isinstance(found, Impossible):
        return {"smallest": found.smallest}
    return vars(found) | {"data": b64encode(found.data).decode()}


def _from_json(entry: dict[str, Any]) -> Found | Impossible:
    if "smallest" in entry:
        return Impossible(entry["smallest"])
    return Found(**(entry | {"data": b64decode(entry["data"])}))
