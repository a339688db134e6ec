"""What is known of a model without asking its weights: one record, from configuration to codec. No torch here."""

from dataclasses import dataclass

from titokc.errors import UsageError

FAITHFUL = "faithful"


@dataclass(frozen=True)
class ModelInfo:
    """A configuration says the first part; who the model is, `titokc.weights.load` and the light engine add.

    codebook_size: tokens are in 0..codebook_size-1. min_tokens, max_tokens: per tile, the counts that `encode` makes.
    nested: whether the first k tokens of a tile, k >= 1, are a poorer picture of it. side: of a tile in pixels.
    looks: the ways in which it can decode, the usual one first.
    name: as messages and listings call it. id: its id in `.tok` files, 0 for a custom model.
    code: 32 bytes, the fingerprint of what gives its tokens their meaning; every model with this code reads them.
    weights: 32 bytes, the fingerprint of everything, which tells two decoders of one code apart.
    """

    codebook_size: int
    min_tokens: int
    max_tokens: int
    nested: bool
    side: int
    looks: tuple[str, ...] = (FAITHFUL,)
    name: str = "this model"
    id: int = 0
    code: bytes = b""
    weights: bytes = b""

    @property
    def bits(self) -> int:
        """Bits that hold one token: ceil(log2(codebook_size))."""
        return (self.codebook_size - 1).bit_length()

    def check_tokens(self, tokens: int | None) -> int:
        """The number of tokens per tile to make, max_tokens for None; UsageError for one that the model does not."""
        count = self.max_tokens if tokens is None else tokens
        if not self.min_tokens <= count <= self.max_tokens:
            expected = f"{self.min_tokens} to {self.max_tokens}" if self.nested else f"{self.max_tokens}"
            raise UsageError(f"{count} tokens: {self.name} makes {expected}")
        return count
