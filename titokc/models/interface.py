"""The one interface that every tokenizer fills; codec, trainer and benchmark know no model by name.

Shape legend, here and in all of `titokc.models`:
B batch, S side of the (square) input in pixels, K tokens, V codebook size, P patches, D width.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from titokc.errors import ModelMismatchError, UsageError


class Reconstruction(NamedTuple):
    """What one differentiable pass through a tokenizer gives the trainer.

    images: float32 RGB [B, 3, S, S]. indices: int64 [B, K]. quantizer_loss: scalar, codebook and
    commitment terms of the quantiser (zero where it has none).
    Of a tokenizer that can search only: latents: what was quantised. quantised: what was decoded, a leaf whose gradient
    after a backward pass tells `better_latents` where better ones lie.
    """

    images: Tensor
    indices: Tensor
    quantizer_loss: Tensor
    latents: Tensor | None = None
    quantised: Tensor | None = None


class Tokenizer(nn.Module, ABC):
    """Images [B, 3, S, S] <-> token indices [B, K].

    Attributes that a subclass sets in its constructor, from its configuration:
        image_size: S, the side in pixels of the square images it sees.
        codebook_size: V; indices are in 0..V-1.
        min_tokens, max_tokens: the counts K that `encode` makes. Equal for a fixed-length tokenizer.
        nested: True if the first k tokens of a longer code are themselves a valid code of the image,
            for every min_tokens <= k <= max_tokens (tail token drop).
        searches: True if `encode` takes notice of its effort, and `better_latents` is there for training.
    and what `titokc.weights.load` sets on it:
        name: as messages and listings call it. model_id: its id in `.tok` files, 0 for a custom model.
        fingerprint: SHA-256 of configuration and weights, 32 bytes.
    """

    image_size: int
    codebook_size: int
    min_tokens: int
    max_tokens: int
    nested: bool
    searches: bool = False
    name: str
    model_id: int
    fingerprint: bytes

    @property
    def bits_per_index(self) -> int:
        """Bits that hold one index: ceil(log2(V))."""
        return (self.codebook_size - 1).bit_length()

    @property
    def training_sizes(self) -> tuple[int, ...]:
        """The sides in pixels of the images that `forward` takes."""
        return (self.image_size,)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def token_count(self, tokens: int | None) -> int:
        """The count that `encode` is to make, `max_tokens` for None; UsageError for one that the model lacks."""
        count = self.max_tokens if tokens is None else tokens
        if not self.min_tokens <= count <= self.max_tokens:
            made = f"{self.min_tokens}..{self.max_tokens}" if self.nested else f"exactly {self.max_tokens}"
            raise UsageError(f"{count} tokens asked for, this model makes {made}")
        return count

    def check_indices(self, indices: Tensor) -> None:
        """Raises ModelMismatchError unless all indices, if any, are in 0..V-1."""
        if not indices.numel():
            return
        lowest, highest = (int(bound) for bound in indices.aminmax())
        if not 0 <= lowest <= highest < self.codebook_size:
            raise ModelMismatchError(f"indices {lowest}..{highest}, this model has 0..{self.codebook_size - 1}")

    @abstractmethod
    def encode(self, images: Tensor, tokens: int | None = None, effort: int = 0) -> Tensor:
        """RGB float images [B, 3, S, S] in [0, 1] -> int64 indices [B, K] in 0..V-1.

        effort: rounds of search for indices that decode to something nearer, in a tokenizer that can search.
        K is `tokens` (default `max_tokens`), within min_tokens..max_tokens. Runs in float32 whatever
        the autocast state around it, so that tokens do not depend on the decoder's precision.
        """

    @abstractmethod
    def decode(self, indices: Tensor) -> Tensor:
        """int64 indices [B, k], 1 <= k <= max_tokens -> float32 RGB [B, 3, S, S], nominally in [0, 1] (not clamped)."""

    @abstractmethod
    def forward(self, images: Tensor, tokens: int | Tensor | None = None) -> Reconstruction:
        """The training pass: `decode(encode(images))` with straight-through gradients at the quantiser.

        `tokens`: how many tokens to keep, one count for all or int64 [B] for tail token drop.
        """

    def better_latents(self, latents: Tensor, quantised: Tensor, gradient: Tensor) -> Tensor:
        """What to quantise instead of `latents`, so that it decodes to something nearer.

        quantised, gradient: what the latents became, and that of each image's mean squared error with respect to it.
        """
        raise NotImplementedError
