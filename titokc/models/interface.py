"""The one interface that every tokenizer fills: whoever uses a model uses this, and knows none by name.

Shape legend, here and in all of `titokc.models`:
B batch, S side of the (square) input in pixels, K tokens, V codebook size, P patches, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from titokc.errors import UsageError
from titokc.models.info import FAITHFUL, ModelInfo
from titokc.models.quantizers import VectorQuantizer

# Originals [B, 3, S, S] in [0, 1] -> what says of pictures like them how far away they look [B], with a gradient.
Distance = Callable[[Tensor], Callable[[Tensor], Tensor]]


class Config(Protocol):
    """What defines a tokenizer apart from its weights: a frozen dataclass that refuses what cannot be (ValueError).

    architecture: the name under which `titokc.models.TABLE` has its room. info: without name, id and fingerprints.
    """

    architecture: ClassVar[str]

    @property
    def info(self) -> ModelInfo: ...

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
        info: what it says of the model; `titokc.weights.load` adds name, id and fingerprints.
        shares_threads: True if `encode` gives the same tokens whatever number of torch's threads shares its products.
        searches: True if `encode` takes notice of its effort, and `better_latents` is there for training.
        training_sides: the sides in pixels of the images that `reconstruct` takes.
        codebooks: the learned codebooks by the names of their modules.
        fit_steps: what `fit` counts to; 0 where there is nothing to fit.
    """

    config: Config
    info: ModelInfo
    shares_threads: bool = False
    searches: bool = False
    fit_steps: int = 0

    @property
    def training_sides(self) -> tuple[int, ...]:
        return (self.info.side,)

    @property
    def codebooks(self) -> dict[str, VectorQuantizer]:
        return {}

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

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
        distance: what counts for the search beside the squared error, of the pictures of the last of `info.looks`; a
        tokenizer with one look takes no notice.
        K is what `info.check_tokens` makes of `tokens`. Runs in float32 whatever the autocast state around it, so that
        tokens do not depend on the decoder's precision.
        """

    @abstractmethod
    def decode(self, tokens: Tensor, look: str = FAITHFUL) -> Tensor:
        """int64 indices [B, k] in 0..V-1, which callers check -> float32 RGB [B, 3, S, S], nominally in [0, 1] (not
        clamped). 1 <= k <= info.max_tokens. look: one of `info.looks`.
        """

    def distortions(self, image: np.ndarray, tokens: int) -> np.ndarray:
        """See `titokc.engines.base.Engine`; of one picture, uint8 RGB [S, S, 3]. Nested tokenizers tell it."""
        raise NotImplementedError

    def export_onnx(self, weights: Path, stored: Mapping[str, dict[str, Any]], search: bool) -> None:  # noqa: ARG002
        """Writes the decoder as ONNX graphs beside `weights`, the file that it was loaded from, and model.json, which
        says how to use them (formats/onnx.md).

        stored: of each tensor in that file its type, shape, offset and bytes, and of one in 8 bits the same of its
        scale. search: the gradient of the squared error by what is decoded, too. UsageError where there is no export.
        """
        raise UsageError(f"{self.info.name}: models of its architecture have no ONNX export")

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
