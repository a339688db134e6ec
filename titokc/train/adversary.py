"""What adversaries have in common: networks that learn, beside a tokenizer, to tell its pictures from photographs."""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from titokc.train import optim
from titokc.train.checkpoint import Parts
from titokc.train.distributed import Group

S = TypeVar("S", bound=tuple[Any, ...])


class Adversary(ABC, Generic[S]):
    """A network with its optimiser. S: what it is shown of a part of a batch, photographs first.

    part: of checkpoints, its name. clip: most of a gradient's norm.
    """

    part: ClassVar[str]
    clip: ClassVar[float] = math.inf

    def __init__(self, network: nn.Module, group: Group, lr: float, betas: tuple[float, float]) -> None:
        self.network = network
        self._spread, self._group, self._lr = group.spread(network), group, lr
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, betas=betas, weight_decay=1e-4)
        self._names: optim.Names = {parameter: name for name, parameter in network.named_parameters()}
        self._shown: list[S] = []

    @abstractmethod
    def losses(self, shown: S) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of what the network was shown, in its spread form, and scalars for the log."""

    def show(self, shown: S) -> None:
        """A part of the batch, without gradients, that the next step learns from."""
        self._shown.append(shown)

    def step(self, factor: float) -> dict[str, float]:
        """One step on what was shown, at its rate times `factor`; numbers for the log, if there was
        anything."""
        if not self._shown:
            return {}
        self.network.requires_grad_(True)
        shares, found = [], []
        for shown in self._shown:
            share = len(shown[0]) / sum(len(part[0]) for part in self._shown)
            loss, measured = self.losses(shown)
            (share * loss).backward()
            shares.append(share)
            found.append(torch.stack(list(measured.values())).detach())
        self._shown.clear()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        for settings in self.optimizer.param_groups:
            settings["lr"] = factor * self._lr
        *rows, (total_norm, *_) = torch.stack([*found, norm.expand(len(measured))]).tolist()  # one wait for all
        if math.isfinite(total_norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        columns = zip(measured, zip(*rows, strict=True), strict=True)
        sums = {
            name: sum(share * value for share, value in zip(shares, values, strict=True)) for name, values in columns
        }
        total = self._group.sum(sums, norm.device)
        return {f"discriminator_{name}": value / self._group.size for name, value in total.items()}

    def tensors(self) -> Parts:
        """The parts of a checkpoint that hold it."""
        state = optim.state_tensors(self.optimizer, self._names)
        return {self.part: self.network.state_dict(), f"{self.part}_adamw": state}

    def load(self, parts: Parts) -> None:
        """Puts back what `tensors` gave; a checkpoint from before it leaves it untrained."""
        self._shown.clear()
        if self.part in parts:
            self.network.load_state_dict(parts[self.part])
            optim.load_state_tensors(self.optimizer, self._names, parts[f"{self.part}_adamw"])
