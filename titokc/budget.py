"""What fits into a budget of bytes, or reaches a quality: headers to try for `titokc.codec`, which encodes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from titokc import container
from titokc.container import FINGERPRINT_SIZE, Header
from titokc.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from titokc.models.info import ModelInfo
    from titokc.options import EncodeOptions
    from titokc.tiling import Grid

# How many numbers of tiles a budget is searched over, and how many where tiles share it out.
CANDIDATES = 8
SHARED_CANDIDATES = 24
# Of grids whose tiles share the budget out, so many are decoded, those where the linear code leaves least: the decoder
# takes away so many dB less of it for each doubling of the tiles.
LIKELY = 6
DOUBLING = 0.03
# Candidates are compared after longer and longer searches, as these gain more in fewer tiles.
FINALISTS = 6
# Fewer than this part of a model's most tokens are no reason for more tiles: between as large files more tokens win.
SHARED = 20
# A quality is looked for in at most so many tiles.
MOST_TILES = 64


class Stage(NamedTuple):
    """A comparison of candidates after a search of this effort: what goes on to the next are those within `close` dB of
    the best, of at most `tiles` together. `whole`: on the picture itself, not on one reduced by `reduction`."""

    effort: int
    close: float
    tiles: int
    whole: bool


STAGES = (Stage(0, 0.2, 64, False), Stage(2, 0.06, 16, False), Stage(7, 0.02, 12, True))


def stages(effort: int) -> list[Stage]:
    return [stage for stage in STAGES if stage.effort < effort] + [Stage(effort, 0.0, 0, True)]


def reduction(size: tuple[int, int], info: ModelInfo, budget: int) -> int:
    """By which whole factor a picture can be reduced while its grids are compared: the tiles of the finest grid that a
    budget allows keep the model's side."""
    most = max(1, budget * 8 // (info.bits * max(info.min_tokens, info.max_tokens // SHARED)))
    return max(1, int(math.sqrt(size[0] * size[1] / most) / info.side))


def finalists(found: list[tuple[float, list[int], Header]], stage: Stage) -> list[Header]:
    """Of what was made of candidates, nearest first, the best and what else goes on from this stage."""
    best, _, first = found[0]
    chosen = [first]
    for quality, _, header in found[1:FINALISTS]:
        if best - quality <= stage.close and sum(each.tiles for each in chosen) + header.tiles <= stage.tiles:
            chosen.append(header)
    return chosen


def header_of(info: ModelInfo, size: tuple[int, int], grid: Grid, tokens: int) -> Header:
    return Header(
        *size,
        *grid,
        tokens_per_tile=tokens,
        bits_per_index=info.bits,
        model_id=info.id,
        fingerprint=info.code[:FINGERPRINT_SIZE],
        nested=info.nested,
    )


# Encodes, with so much effort, and decodes: how near that is, and the tokens.
Tried = Callable[[Header, int], tuple[float, list[int]]]
# Of a grid the distortions of its tiles, [N, 1 + K], K being the most tokens that a tile can have, as
# `titokc.engines.base.Engine` tells them for a nested model.
Told = Callable[["Grid"], "np.ndarray"]


def candidates(
    size: tuple[int, int], info: ModelInfo, grid: Grid | None, options: EncodeOptions, told: Told
) -> list[Header]:
    """Grids, each with the most tokens that the budget allows; with those of a nested model shared out among tiles only
    the likeliest."""
    from titokc import tiling

    may_share = info.nested and not options.tokens and options.form == "tok"

    budget = options.target_size or 0
    fewest, most = (options.tokens, options.tokens) if options.tokens else (info.min_tokens, info.max_tokens)

    def bytes_of(grid: Grid, tokens: int) -> int:
        header = header_of(info, size, grid, tokens)
        if options.form == "tok":
            return container.file_size(header)
        return header.payload_bytes if options.form == "bare" else -(-header.payload_bytes * 4 // 3)

    smallest = bytes_of(grid or (1, 1), fewest)
    if smallest > budget:
        rows, columns = grid or (1, 1)
        least = bytes_of((1, 1), info.min_tokens)
        hint = f"; {info.min_tokens} tokens in one tile take {least}" if least <= budget else ""
        raise UsageError(
            f"a budget of {budget} bytes is too small: {fewest} tokens of {info.name} in {rows}x{columns} tiles take "
            f"{smallest}{hint}"
        )
    grids = [grid or (1, 1)]
    shared = max(fewest, most // SHARED)
    if not grid and bytes_of((1, 1), shared) <= budget:
        grids = tiling.candidate_grids(
            size,
            info.side,
            max(1, budget * 8 // (info.bits * most)),
            max(1, budget * 8 // (info.bits * shared)),
            lambda grid: bytes_of(grid, shared) <= budget,
            SHARED_CANDIDATES if may_share else CANDIDATES,
            oblong=may_share,
        )
    counts = range(fewest, most + 1)
    headers = [header_of(info, size, grid, max(n for n in counts if bytes_of(grid, n) <= budget)) for grid in grids]
    if not may_share:
        return headers
    return _likeliest([_shared_out(header, info, told, budget) for header in headers], told)


def _likeliest(headers: list[Header], told: Told) -> list[Header]:
    """The few that the linear code brings nearest, where there are more."""

    def loss(header: Header) -> float:
        return 10 * math.log10(_left(header, told) + 1e-30) + DOUBLING * math.log2(header.tiles)

    return sorted(headers, key=loss)[:LIKELY] if len(headers) > LIKELY else headers


def _shared_out(equal: Header, info: ModelInfo, told: Told, budget: int) -> Header:
    """For one with as many tokens in each tile one whose tiles share the budget out, where that leaves less error."""
    if equal.tiles == 1:
        return equal
    from titokc import sharing

    distortions = told((equal.rows, equal.columns))
    others = container.file_size(equal) - equal.payload_bytes + (equal.tiles + 1) // 2
    shared = sharing.share_out(distortions, info.min_tokens, (budget - others) * 8 // info.bits)
    if shared is None:
        return equal
    unequal = replace(equal, tokens_per_tile=shared[0], shares=shared[1])
    if container.file_size(unequal) > budget:  # a long file's checksum is longer
        return equal
    return min(equal, unequal, key=lambda header: _left(header, told))


def _left(header: Header, told: Told) -> float:
    """The mean of what the linear code leaves of the tiles, with their numbers of tokens."""
    return float(told((header.rows, header.columns))[range(header.tiles), header.counts].mean())


def smallest(
    size: tuple[int, int],
    info: ModelInfo,
    grid: Grid | None,
    goal: tuple[str, float],
    effort: int,
    told: Told | None,
    tried: Tried,
) -> tuple[Header, list[int]]:
    """The header and the tokens of the smallest file found that reaches `goal`. told: None where all tiles must have as
    many tokens.

    First without a search: of each grid as few tokens as reach it, by bisection, if that makes a smaller file than the
    grids before. Then with a search in the best grid, of all of them where none has reached it. Quality scatters a
    little between neighbouring numbers of tokens, so that a smaller file may exist, but what is returned has reached
    the goal itself. UsageError with the most that was reached where nothing does.
    """
    from titokc import tiling

    name, wanted = goal
    nearest: tuple[float, Header] | None = None

    def fewest(grids: list[Grid], most: int, effort: int) -> tuple[Header, list[int], int] | None:
        """The last is the number of tokens of a tile, on average."""
        nonlocal nearest
        found: tuple[Header, list[int], int] | None = None
        for grid in grids:
            low, high = info.min_tokens, most
            while found and low <= high and file_size(grid, high) >= container.file_size(found[0]):
                high -= 1
            tokens = high
            while low <= high:
                header = header_of(info, size, grid, tokens)
                if told:
                    header = _shared_out(header, info, told, container.file_size(header))
                reached, indices = tried(header, effort)
                if nearest is None or reached > nearest[0]:
                    nearest = reached, header
                if reached >= wanted:
                    found, high = (header, indices, tokens), tokens - 1
                else:
                    low = tokens + 1
                tokens = (low + high) // 2
        return found

    def file_size(grid: Grid, tokens: int) -> int:
        return container.file_size(header_of(info, size, grid, tokens))

    grids = [grid] if grid else tiling.candidate_grids(size, info.side, 1, MOST_TILES, lambda _: True, CANDIDATES)
    rough = fewest(grids, info.max_tokens, 0)
    if rough:
        header, indices, tokens = rough
        header, indices, _ = fewest([(header.rows, header.columns)], tokens, effort) or rough
        return header, indices
    found = fewest(grids, info.max_tokens, effort)
    if found:
        return found[0], found[1]
    assert nearest is not None
    reached, header = nearest
    digits, unit = (2, " dB") if name == "psnr" else (3, "")
    raise UsageError(
        f"target_{name} {wanted:g}: the most that was reached is {reached:.{digits}f}{unit}, with "
        f"{header.tokens_per_tile} tokens in {header.rows}x{header.columns} tiles; ask for less"
    )
