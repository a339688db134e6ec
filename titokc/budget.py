"""What fits into a budget of bytes: headers to try, for `titokc.codec`, which encodes and compares them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from titokc import container
from titokc.container import FINGERPRINT_SIZE, Header
from titokc.errors import UsageError

if TYPE_CHECKING:
    from titokc.engines.base import ModelInfo
    from titokc.options import EncodeOptions
    from titokc.tiling import Grid

# How many pairs of grid and token count a budget is searched over.
CANDIDATES = 8
# Fewer than this part of a model's most tokens are no reason for more tiles: between as large files more tokens win.
SHARED = 4


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


def candidates(size: tuple[int, int], info: ModelInfo, grid: Grid | None, options: EncodeOptions) -> list[Header]:
    """At most CANDIDATES grids, each with the most tokens that the budget allows."""
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
    return [header_of(info, size, grid, max(n for n in counts if bytes_of(grid, n) <= budget)) for grid in grids]
