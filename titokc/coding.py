"""One picture through an engine: its tiles become tokens, and tokens a picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from titokc import container
from titokc.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from titokc.container import Header
    from titokc.engines.base import Engine
    from titokc.many import Work
    from titokc.options import EncodeOptions
    from titokc.tiling import Grid


def to_indices(image: Image.Image, header: Header, engine: Engine, options: EncodeOptions, work: Work) -> list[int]:
    """An RGB picture's tokens as its header says, in the order of the file."""
    import numpy as np

    from titokc import tiling

    def run(group: list[tuple[np.ndarray, int]]) -> list[np.ndarray]:
        return engine.encode([tile for tile, _ in group], [n for _, n in group], options.search_effort, options.tune)

    work.expect(header.tiles)
    tiles = map(np.asarray, tiling.cut(image, (header.rows, header.columns), engine.info.side))
    tokens = work.through(run, zip(tiles, header.counts, strict=True), engine.width)
    rest = [iter(of_tile.tolist()) for of_tile in tokens]
    return [next(rest[tile]) for tile in container.tile_order(header)]


def to_picture(
    indices: list[int], header: Header, engine: Engine, look: str, size: tuple[int, int], work: Work
) -> Image.Image:
    """An RGB picture of `size` from tokens in the order of the file. UsageError for a look that the model lacks."""
    import numpy as np
    from PIL import Image

    from titokc import tiling

    grid = tiling.parse_grid((header.rows, header.columns), size, 0)  # no more tiles than pixels
    looks = engine.info.looks
    if look and look not in looks:
        raise UsageError(f"look {look!r}: {engine.info.name} has {', '.join(looks)}")
    tokens: list[list[int]] = [[] for _ in range(header.tiles)]
    for tile, index in zip(container.tile_order(header), indices, strict=True):
        tokens[tile].append(index)
    work.expect(header.tiles)
    rows = (np.array(of_tile, np.int64) for of_tile in tokens)
    tiles = work.through(lambda group: engine.decode(group, look or looks[0]), rows, engine.width)
    return tiling.assemble(map(Image.fromarray, tiles), grid, size, unequal=bool(header.shares))


def distortions(image: Image.Image, grid: Grid, tokens: int, engine: Engine, work: Work) -> np.ndarray:
    """What is left of each tile after 0 to `tokens` tokens, [N, 1 + tokens] (see `titokc.engines.base.Engine`), and
    what is lost of larger ones by scaling."""
    import numpy as np

    from titokc import tiling

    side, lost = engine.info.side, []

    def scaled() -> Iterator[np.ndarray]:
        boxes = tiling.boxes(image.size, grid)
        for tile, box in zip(tiling.cut(image, grid, side), boxes, strict=True):
            error = 0.0
            if max(box[2] - box[0], box[3] - box[1]) > side:
                original = image.crop(box)
                enlarged = tiling.fit(tile, original.size)
                error = float(np.square(np.asarray(original, np.float32) - np.asarray(enlarged)).mean() / 255**2)
            lost.append(error)
            yield np.asarray(tile)

    def run(tiles: list[np.ndarray]) -> list[np.ndarray]:
        return engine.distortions(tiles, tokens)

    left = np.stack(list(work.through(run, scaled(), engine.width, counted=False)))
    return left + np.array(lost)[:, None]
