"""The interface of what a phase trains for; the loop knows no objective by name."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from titokc.models.interface import Reconstruction, Tokenizer
from titokc.train.adversary import Adversary
from titokc.train.checkpoint import Parts
from titokc.train.distributed import Group

S = TypeVar("S")


@dataclass(frozen=True)
class Setup:
    """What objectives are made with, beside their settings. proxy: the file that --proxy names."""

    device: torch.device
    group: Group
    proxy: Path | None = None


class Shown(NamedTuple):
    """What one training pass sees.

    images: RGB float32 [B, 3, S, S] in [0, 1]. keep: tokens kept of each, int64 [B] on the host, where nothing has to
    wait for them, or None for all. latents: what to quantise instead of the images' own, in the further passes of
    `Phase.search`. progress: of the phase, 0 to 1.
    """

    images: Tensor
    keep: Tensor | None
    latents: Tensor | None
    progress: float


class Objective(ABC, Generic[S]):
    """What a phase trains for; made before the run begins, also for phases that come later.

    may_grow: the names of terms that are left out where the loop asks whether a training diverges. adversary: what else
    learns, if anything does.
    """

    may_grow: ClassVar[frozenset[str]] = frozenset({"quantizer", "gan"})
    adversary: Adversary[Any] | None = None

    def __init__(self, settings: S, setup: Setup) -> None:
        self.settings, self.setup = settings, setup

    @abstractmethod
    def terms(self, tokenizer: Tokenizer, batch: Shown) -> tuple[dict[str, Tensor], Reconstruction | None]:
        """The weighted terms of the loss, scalars by name, and what was made of the images, if it was pictures."""

    @abstractmethod
    def validate(self, tokenizer: Tokenizer, squares: Tensor) -> tuple[dict[str, float], Tensor]:
        """What to report of pictures uint8 [N, 3, S, S], all or this process's share: "loss", of which less is better,
        and more; a grid to look at, uint8 [3, H, W]. The same numbers in every process."""

    def prepare(self, tokenizer: Tokenizer) -> None:
        """Puts into the tokenizer of a run that begins with this objective what does not come from training."""

    def learn(self, factor: float) -> dict[str, float]:
        """After the tokenizer's step: the adversary's, its rate times `factor`; numbers for the log."""
        return {} if self.adversary is None else self.adversary.step(factor)

    def tensors(self) -> Parts:
        """What a checkpoint keeps of it."""
        return {} if self.adversary is None else self.adversary.tensors()

    def load(self, parts: Parts) -> None:
        """Puts back what `tensors` gave, if it is among the parts."""
        if self.adversary is not None:
            self.adversary.load(parts)
