"""What fits into a budget of bytes, or reaches a quality: headers to try for `titokc.codec`, which encodes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from titokc import container
from titokc.container import FINGERPRINT_SIZE, Header
from titokc.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from titokc.models.info import ModelInfo
    from titokc.options import EncodeOptions
    from titokc.tiling import Grid

# How many numbers of tiles a budget is searched over.
CANDIDATES = 8
# Of all candidates, decoded from their nearest tokens, at most so many, no farther than so many dB from the best and no
# more than so many tiles together, are compared after the encoder's search: it gains more in fewer tiles.
FINALISTS = 3
CLOSE = 0.1
SEARCHED = 64
# Fewer than this part of a model's most tokens are no reason for more tiles: between as large files more tokens win.
SHARED = 10
# A quality is looked for in at most so many tiles.
MOST_TILES = 64


def finalists(found: list[tuple[float, list[int], Header]]) -> list[Header]:
    """Of what was made of candidates, nearest first, those that the search decides between."""
    best, _, first = found[0]
    chosen = [first]
    for quality, _, header in found[1:FINALISTS]:
        if best - quality <= CLOSE and sum(each.tiles for each in chosen) + header.tiles <= SEARCHED:
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


# Of a grid the distortions of its tiles, [N, 1 + K], as `titokc.engines.base.Engine` tells them for a nested model.
Told = Callable[["Grid"], "np.ndarray"]


def candidates(
    size: tuple[int, int], info: ModelInfo, grid: Grid | None, options: EncodeOptions, told: Told
) -> list[Header]:
    """Grids, each with the most tokens that the budget allows, of a nested model shared out among tiles."""
    from titokc import tiling

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
            CANDIDATES,
        )
    counts = range(fewest, most + 1)
    headers = [header_of(info, size, grid, max(n for n in counts if bytes_of(grid, n) <= budget)) for grid in grids]
    if not info.nested or options.tokens or options.form != "tok":
        return headers
    return [_shared_out(header, info, told, budget) for header in headers]


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
    return min(equal, unequal, key=lambda header: distortions[range(header.tiles), header.counts].sum())


def smallest(
    size: tuple[int, int],
    info: ModelInfo,
    grid: Grid | None,
    goal: tuple[str, float],
    told: Told | None,
    tried: Callable[[Header], tuple[float, list[int]]],
) -> tuple[Header, list[int]]:
    """The header and the tokens of the smallest file found that reaches `goal`; `tried` encodes, decodes and judges.
    told: None where all tiles must have as many tokens.

    Grids from few tiles to many with the most tokens, until one reaches it: between files of about the same size fewer
    tiles with more tokens are nearer. Then fewer tokens in it, by bisection: quality scatters a little between
    neighbouring numbers of tokens, so that a smaller file may exist, but what is returned has reached the goal itself.
    UsageError with the most that was reached where nothing does.
    """
    from titokc import tiling

    name, wanted = goal
    grids = [grid] if grid else tiling.candidate_grids(size, info.side, 1, MOST_TILES, lambda _: True, CANDIDATES)
    best: tuple[float, Header] | None = None
    for each in grids:
        header = header_of(info, size, each, info.max_tokens)
        reached, indices = tried(header)
        if best is None or reached > best[0]:
            best = reached, header
        if reached >= wanted:
            break
    else:
        assert best is not None
        reached, header = best
        digits, unit = (2, " dB") if name == "psnr" else (3, "")
        raise UsageError(
            f"target_{name} {wanted:g}: the most that was reached is {reached:.{digits}f}{unit}, with "
            f"{header.tokens_per_tile} tokens in {header.rows}x{header.columns} tiles; ask for less"
        )
    fewest, most = info.min_tokens, info.max_tokens
    while fewest < most:
        tokens = (fewest + most) // 2
        fewer = header_of(info, size, (header.rows, header.columns), tokens)
        if told:
            fewer = _shared_out(fewer, info, told, container.file_size(fewer))
        reached, found = tried(fewer)
        if reached >= wanted:
            header, indices, most = fewer, found, tokens
        else:
            fewest = tokens + 1
    return header, indices
