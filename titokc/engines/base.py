"""What an engine is: arrays of square tiles <-> arrays of tokens, for one model on one device.

`titokc.codec` makes the tiles and writes the tokens; `titokc.engines.open` chooses the engine. Neither knows tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from titokc.errors import UsageError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model without asking its weights.

    name: as messages and listings call it. id: its id in `.tok` files, 0 for a custom model.
    code: 32 bytes, the fingerprint of what gives its tokens their meaning; every model with this code reads them.
    weights: 32 bytes, the fingerprint of everything, which tells two decoders of one code apart.
    codebook_size: tokens are in 0..codebook_size-1. min_tokens, max_tokens: per tile, the counts that `encode` makes.
    nested: whether the first k tokens of a tile, k >= 1, are a poorer picture of it. side: of a tile in pixels.
    looks: the ways in which it can decode, the usual one first.
    """

    name: str
    id: int
    code: bytes
    weights: bytes
    codebook_size: int
    min_tokens: int
    max_tokens: int
    nested: bool
    side: int
    looks: tuple[str, ...]

    @property
    def bits(self) -> int:
        """Bits that hold one token: ceil(log2(codebook_size))."""
        return (self.codebook_size - 1).bit_length()

    def check_tokens(self, tokens: int | None) -> None:
        """UsageError for a number of tokens per tile that the model does not make."""
        if tokens is not None and not self.min_tokens <= tokens <= self.max_tokens:
            expected = f"{self.min_tokens} to {self.max_tokens}" if self.nested else f"{self.max_tokens}"
            raise UsageError(f"{tokens} tokens: {self.name} makes {expected}")


class Engine(Protocol):
    """Runs one model. It owns threads, precision and batches, and may be called from several threads at the same time.

    Shapes: N tiles, S = info.side, K tokens a tile. What a tile becomes does not depend on the tiles beside it, nor do
    tokens on the number of threads.
    """

    info: ModelInfo
    width: int
    """How many tiles it works on at the same time: fewer in all calls together leave it partly idle."""

    def encode(self, tiles: np.ndarray, tokens: int, effort: int, tune: str = "psnr") -> np.ndarray:
        """uint8 RGB [N, S, S, 3] -> int64 [N, tokens], info.min_tokens <= tokens <= info.max_tokens.

        effort: 0..9, how long to search for tokens that decode to something nearer; 0 takes the nearest ones.
        tune: what is nearer then, one of `titokc.options.TUNES`. Raises UsageError for one that it cannot have.
        """

    def decode(self, tokens: np.ndarray, look: str) -> np.ndarray:
        """int64 [N, K], 1 <= K <= info.max_tokens, in 0..info.codebook_size-1 -> uint8 RGB [N, S, S, 3].

        look: one of info.looks.
        """
