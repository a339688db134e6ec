"""The one interface that every tokenizer fills: whoever uses a model uses this, and knows none by name.

Shape legend, here and in all of `titokc.models`:
B batch, S side of the (square) input in pixels, K tokens, V codebook size, P patches, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from titokc.errors import UsageError
from titokc.models.quantizers import VectorQuantizer

FAITHFUL = "faithful"
# Pictures and the originals, [B, 3, S, S] in [0, 1] -> how far apart they look [B], with a gradient.
Distance = Callable[[Tensor, Tensor], Tensor]


class Config(Protocol):
    """What defines a tokenizer apart from its weights: a frozen dataclass that refuses what cannot be (ValueError).

    architecture: the name under which `titokc.models.TABLE` has its room. codebook_size: V. counts: the fewest and the
    most tokens that `encode` makes. looks: as the tokenizer's.
    """

    architecture: ClassVar[str]

    @property
    def codebook_size(self) -> int: ...

    @property
    def counts(self) -> tuple[int, int]: ...

    @property
    def looks(self) -> tuple[str, ...]: ...

    def to_dict(self) -> dict[str, Any]:
        """What config.json says."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]) -> "Config":
        """From a parsed config.json, if there is one, and the shapes of the weights. Raises WeightsError."""


class Code(NamedTuple):
    """What gives the tokens their meaning, and nothing else: the same tokens of two models with the same code say the
    same. version: of the algorithm. fields: of the configuration, by name. tensors: of the state dict, by name."""

    version: int
    fields: dict[str, Any]
    tensors: dict[str, Tensor]


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
        config: that configuration.
        side: S, in pixels, of the square images it sees.
        codebook_size: V; indices are in 0..V-1.
        min_tokens, max_tokens: the counts K that `encode` makes. Equal for a fixed-length tokenizer.
        nested: True if the first k tokens of a longer code are themselves a valid code of the image,
            for every min_tokens <= k <= max_tokens (tail token drop).
        shares_threads: True if `encode` gives the same tokens whatever number of torch's threads shares its products.
        searches: True if `encode` takes notice of its effort, and `better_latents` is there for training.
        looks: the ways in which `decode` can make a picture, the usual one first.
        training_sides: the sides in pixels of the images that `reconstruct` takes.
        codebooks: the learned codebooks by the names of their modules.
        fit_steps: what `fit` counts to; 0 where there is nothing to fit.
    and what `titokc.weights.load` sets on it:
        name: as messages and listings call it. model_id: its id in `.tok` files, 0 for a custom model.
        fingerprint: of its code, 32 bytes: what `.tok` files carry the start of (`titokc.weights.fingerprint`).
        weights_fingerprint: of everything that decides what it makes, 32 bytes.
    """

    config: Config
    side: int
    codebook_size: int
    min_tokens: int
    max_tokens: int
    nested: bool
    shares_threads: bool = False
    searches: bool = False
    looks: tuple[str, ...] = (FAITHFUL,)
    fit_steps: int = 0
    name: str
    model_id: int
    fingerprint: bytes
    weights_fingerprint: bytes

    @property
    def training_sides(self) -> tuple[int, ...]:
        return (self.side,)

    @property
    def codebooks(self) -> dict[str, VectorQuantizer]:
        return {}

    @property
    def bits_per_index(self) -> int:
        """Bits that hold one index: ceil(log2(V))."""
        return (self.codebook_size - 1).bit_length()

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

    @abstractmethod
    def code(self) -> Code:
        """What the fingerprint in `.tok` files is made of."""

    def check(self) -> None:
        """Raises WeightsError for weights of the right shapes that no model can have."""

    @abstractmethod
    def encode(
        self, images: Tensor, tokens: int | None = None, effort: int = 0, distance: Distance | None = None
    ) -> Tensor:
        """RGB float images [B, 3, S, S] in [0, 1] -> int64 indices [B, K] in 0..V-1.

        effort: 0..9, how long to search for indices that decode to something nearer, in a tokenizer that can search.
        distance: what counts for the search beside the squared error, of the pictures of the last of `looks`; a
        tokenizer with one look takes no notice.
        K is `tokens` (default `max_tokens`), within min_tokens..max_tokens. Runs in float32 whatever the autocast state
        around it, so that tokens do not depend on the decoder's precision.
        """

    @abstractmethod
    def decode(self, tokens: Tensor, look: str = FAITHFUL) -> Tensor:
        """int64 indices [B, k] in 0..V-1, which callers check -> float32 RGB [B, 3, S, S], nominally in [0, 1] (not
        clamped). 1 <= k <= max_tokens. look: one of `looks`.
        """

    def export_onnx(self, weights: Path, stored: Mapping[str, dict[str, Any]], search: bool) -> None:  # noqa: ARG002
        """Writes the decoder as ONNX graphs beside `weights`, the file that it was loaded from, and model.json, which
        says how to use them (formats/onnx.md).

        stored: of each tensor in that file its type, shape, offset and bytes, and of one in 8 bits the same of its
        scale. search: the gradient of the squared error by what is decoded, too. UsageError where there is no export.
        """
        raise UsageError(f"{self.name}: models of its architecture have no ONNX export")

    @abstractmethod
    def reconstruct(self, images: Tensor, keep: Tensor | None = None, latents: Tensor | None = None) -> Reconstruction:
        """The training pass: `decode(encode(images))` with straight-through gradients at the quantiser.

        keep: int64 [B], how many tokens to keep of each image (tail token drop); None: all.
        latents: what to quantise instead of the images' own, in a tokenizer that can search.
        """

    def better_latents(self, latents: Tensor, quantised: Tensor, gradient: Tensor) -> Tensor:
        """What to quantise instead of `latents`, so that it decodes to something nearer.

        quantised, gradient: what the latents became, and that of each image's mean squared error with respect to it.
        """
        raise NotImplementedError

    def fit(self, batches: Iterator[Tensor], done: int = 0) -> Iterator[int]:  # noqa: ARG002
        """Fits what no gradient reaches to training images [B, 3, S, S], before training.

        Yields now and then how many of `fit_steps` are done: from the state dict of that moment, the same batches from
        the first on and that number as `done`, another call goes on as this one would have.
        """
        return iter(())
