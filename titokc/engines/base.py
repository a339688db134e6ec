"""What an engine is: arrays of square tiles <-> arrays of tokens, for one model on one device.

`titokc.codec` makes the tiles and writes the tokens; `titokc.engines.open` chooses the engine. Neither knows tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from titokc.models.info import ModelInfo


class Engine(Protocol):
    """Runs one model. It owns threads, precision and batches, and may be called from several threads at the same time.

    Shapes: N tiles, S = info.side, K tokens of a tile, of each its own number. What a tile becomes does not depend on
    the tiles beside it, nor do tokens on the number of threads.
    """

    info: ModelInfo
    width: int
    """How many tiles it works on at the same time: fewer in all calls together leave it partly idle."""

    def encode(
        self, tiles: Sequence[np.ndarray], counts: Sequence[int], effort: int, tune: str = "psnr"
    ) -> list[np.ndarray]:
        """uint8 RGB [N][S, S, 3] and how many tokens to make of each, info.min_tokens to info.max_tokens -> int64
        [N][K].

        effort: 0..9, how long to search for tokens that decode to something nearer; 0 takes the nearest ones.
        tune: what is nearer then, one of `titokc.options.TUNES`. Raises UsageError for one that it cannot have.
        """

    def decode(self, tokens: Sequence[np.ndarray], look: str) -> list[np.ndarray]:
        """int64 [N][K], 1 <= K <= info.max_tokens, in 0..info.codebook_size-1 -> uint8 RGB [N][S, S, 3].

        look: one of info.looks.
        """

    def distortions(self, tiles: Sequence[np.ndarray], tokens: int) -> list[np.ndarray]:
        """uint8 RGB [N][S, S, 3] -> float64 [N][1 + tokens], about what squared error is left after so many of them,
        the mean over samples in 0..1: by it a nested model's tokens are shared out among tiles."""
