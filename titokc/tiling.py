"""Picture <-> square tiles: which grid, where each tile lies, and reassembly with smooth seams.

The geometry follows from the picture's size and the grid alone (formats/tok-v1.md prescribes it); no torch here.
Rows count from the top, columns from the left, tiles row by row.

Tiles do not overlap: coding pixels twice costs more than blending them gains. On Kodak in 2x3 tiles of 128 tokens,
blending over 1/16 of a tile loses 0.08 dB against hard seams; spreading the step at a seam over 1/32 of the tile on
either side gains up to 0.025 dB, and the seam is gone (bench/LOG.md). Between tiles of unequal numbers of tokens small
steps are first spread much wider, which costs nothing; a large one may be the picture's own.
"""

import operator
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from math import inf, log

import numpy as np
from PIL import Image

from titokc.container import MAX_GRID
from titokc.errors import UsageError

# The step at a seam is spread over one part in so many of the tile.
SEAM_PARTS = 32
# Between tiles of unequal numbers of tokens a step of at most so many levels is first spread over one part in so many;
# of a larger one less, of twice as large a one nothing.
SMALL_STEP = 16
WIDE_PARTS = 4
# What tiles of a budget may be: so many times as long as wide, where they are so few.
LONGEST = 6
FEW = 16

Box = tuple[int, int, int, int]
Grid = tuple[int, int]


def parse_grid(text: str | Grid, size: tuple[int, int], side: int) -> Grid:
    """ "RxC" (or a pair), or "auto" -> (rows, columns) for a picture of `size` (width, height)."""
    if text == "auto":
        return auto_grid(size, side)
    if isinstance(text, str):
        match = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", text)
        if not match:
            raise UsageError(f"tiles {text!r}: expected ROWSxCOLUMNS, such as 2x3, or auto")
        rows, columns = int(match[1]), int(match[2])
    elif isinstance(text, (tuple, list)) and len(text) == 2 and all(hasattr(number, "__index__") for number in text):
        rows, columns = map(operator.index, text)
    else:
        raise UsageError(f'tiles {text!r}: expected (rows, columns), "RxC" or "auto"')
    if not (1 <= rows <= MAX_GRID and 1 <= columns <= MAX_GRID):
        raise UsageError(f"tiles {rows}x{columns}: expected 1 to {MAX_GRID} rows and columns")
    width, height = size
    if rows > height or columns > width:
        raise UsageError(f"tiles {rows}x{columns}: more rows or columns than a {width}x{height} picture has pixels")
    return rows, columns


def auto_grid(size: tuple[int, int], side: int) -> Grid:
    """The grid whose tiles are nearest to `side` x `side` pixels: no detail lost to scaling, none made up."""
    width, height = size
    rows, columns = (min(MAX_GRID, max(1, round(length / side))) for length in (height, width))
    return rows, columns


def candidate_grids(
    size: tuple[int, int],
    side: int,
    fewest_tiles: int,
    most_tiles: int,
    fits: Callable[[Grid], bool],
    count: int,
    oblong: bool = False,
) -> list[Grid]:
    """Grids of `fewest_tiles`..`most_tiles` tiles, of at most `count` numbers of them, that fit a byte budget and are
    worth trying for it.

    Of all grids with as many tiles the one with the squarest, of a square picture both ways; if `oblong`, of up to
    FEW tiles also those at most LONGEST times as long as wide: strips of sky and ground. Left out: more tiles than
    there are of side / 4, and tiles more than twice (those up to FEW: LONGEST times) as long as wide where fewer are
    squarer. Where more than `count` are left, numbers of tiles in about even ratios stay. When none
    of these fits, the largest below that does. Fewest first.
    """
    width, height = size
    finest_rows, finest_columns = auto_grid(size, max(1, side // 4))
    finest = finest_rows * finest_columns
    if oblong:
        finest_rows, finest_columns = min(MAX_GRID, height), min(MAX_GRID, width)

    def stretch(grid: Grid) -> float:
        return round(abs(log(width * grid[0] / (height * grid[1]))), 6)

    shapes: dict[int, list[Grid]] = {}
    for rows in range(1, finest_rows + 1):
        for columns in range(1, min(finest_columns, finest // rows, most_tiles // rows) + 1):
            shapes.setdefault(rows * columns, []).append((rows, columns))
    usable: dict[int, list[Grid]] = {}
    least = inf
    for tiles in sorted(shapes):
        squarest = min(map(stretch, shapes[tiles]))
        others = log(LONGEST) if oblong and tiles <= FEW else 0
        if squarest <= max(log(2), others, least):
            usable[tiles] = [grid for grid in shapes[tiles] if stretch(grid) <= max(squarest, others)]
        least = min(least, squarest)
    fitting = [tiles for tiles, grids in usable.items() if fits(grids[0])]
    in_range = [tiles for tiles in fitting if tiles >= fewest_tiles] or fitting[-1:]
    if len(in_range) > count:
        ratio = in_range[-1] / in_range[0]
        goals = [in_range[0] * ratio ** (i / (count - 1)) for i in range(count)]
        in_range = sorted({min((abs(log(tiles / goal)), tiles) for tiles in in_range)[1] for goal in goals})
    return [grid for tiles in in_range for grid in usable[tiles]]


def spans(length: int, count: int) -> list[tuple[int, int]]:
    """Where `count` tiles lie along an axis of `length` pixels: [start, stop) of each, 1 <= count <= length."""
    return [(i * length // count, (i + 1) * length // count) for i in range(count)]


def boxes(size: tuple[int, int], grid: Grid) -> list[Box]:
    """(left, top, right, bottom) of each tile in pixels."""
    (width, height), (rows, columns) = size, grid
    return [(left, top, right, bottom) for top, bottom in spans(height, rows) for left, right in spans(width, columns)]


def cut(image: Image.Image, grid: Grid, side: int) -> Iterator[Image.Image]:
    """The tiles of an RGB picture, each scaled to side x side (antialiased), or left alone where it has that size."""
    for box in boxes(image.size, grid):
        tile = image if box == (0, 0, *image.size) else image.crop(box)
        yield fit(tile, (side, side))


def assemble(tiles: Iterable[Image.Image], grid: Grid, size: tuple[int, int], unequal: bool = False) -> Image.Image:
    """The inverse of `cut`: RGB tiles of any size, of `unequal` numbers of tokens or not -> a picture of `size` with
    smooth seams."""
    (width, height), (rows, columns) = size, grid
    picture = Image.new("RGB", size)
    for tile, box in zip(tiles, boxes(size, grid), strict=True):
        picture.paste(fit(tile, (box[2] - box[0], box[3] - box[1])), box[:2])
    if rows == columns == 1:
        return picture
    pixels = np.array(picture)
    for smooth in (_spread_small_steps, _smooth_seams) if unequal else (_smooth_seams,):
        for top, bottom in spans(height, rows):
            smooth(pixels[top:bottom], spans(width, columns))
        smooth(pixels.transpose(1, 0, 2), spans(height, rows))
    return Image.fromarray(pixels)


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The whole image scaled to `size`, whatever its aspect ratio; the same object when there is nothing to do."""
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _smooth_seams(pixels: np.ndarray, tiles: list[tuple[int, int]]) -> None:
    """In uint8 [lines, length, 3], takes half of the step between neighbouring `tiles` from either side, fading out."""
    for (start, seam), (_, stop) in pairwise(tiles):
        step = pixels[:, seam].astype(np.int32) - pixels[:, seam - 1]

        def shares(tile: int, step: np.ndarray = step) -> np.ndarray:
            """What each pixel of a tile of this length gets of the step, from the seam inwards: [lines, n, 3]."""
            n = max(1, tile // SEAM_PARTS)
            weights = 2 * np.arange(n, 0, -1) - 1
            return (step[:, None] * weights[:, None] + 2 * n) // (4 * n)

        left, right = shares(seam - start)[:, ::-1], shares(stop - seam)
        before, after = pixels[:, seam - left.shape[1] : seam], pixels[:, seam : seam + right.shape[1]]
        before[...] = np.clip(before + left, 0, 255)
        after[...] = np.clip(after - right, 0, 255)


def _spread_small_steps(pixels: np.ndarray, tiles: list[tuple[int, int]]) -> None:
    """In uint8 [lines, length, 3], takes half of what neighbouring `tiles` differ by, over two pixels on either side
    and many lines, where that is little, from a quarter of either, fading out."""
    for (start, seam), (_, stop) in pairwise(tiles):
        deep = min(2, seam - start, stop - seam)
        before, after = pixels[:, seam - deep : seam], pixels[:, seam : seam + deep]
        reaches = [max(1, tile // WIDE_PARTS) for tile in (seam - start, stop - seam)]
        step = _mean_around(after.mean(1) - before.mean(1), min(reaches) // 2)
        step *= np.clip(2 - np.abs(step).max(1, keepdims=True) / SMALL_STEP, 0, 1)
        for reach, first, way, sign in (reaches[0], seam - 1, -1, 1), (reaches[1], seam, 1, -1):
            for n in range(reach):
                at = pixels[:, first + way * n]
                at[...] = np.clip(np.floor(at + sign * step * ((2 * (reach - n) - 1) / (4 * reach)) + 0.5), 0, 255)


def _mean_around(values: np.ndarray, aside: int) -> np.ndarray:
    """The mean of each value and of `aside` on either side, along the first axis; the ends go on."""
    sums = np.cumsum(np.pad(values, ((aside + 1, aside), (0, 0)), "edge"), 0)
    return (sums[2 * aside + 1 :] - sums[: -2 * aside - 1]) / (2 * aside + 1)
