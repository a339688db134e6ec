"""The adversaries of the natural decoder: critics of patches at three scales, and of EfficientNet-Lite0's features.

Each gives many logits a picture, high for photographs. `titokc.train.objectives.natural` says what they are shown.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from titokc.train import optim
from titokc.train.checkpoint import Parts
from titokc.train.distributed import Group

# Of the stages of EfficientNet-Lite0, the first left out.
_FEATURES = (24, 40, 112, 320)
_HEAD = 64
# Channels of each scale. The first layer of the first one keeps the resolution: were all strided, what has a period of
# two pixels would pass (measured: a checkerboard everywhere).
_UNSTRIDED = 24
_PATCHES = (48, 48, 64)


class Logits(NamedTuple):
    """Of each critic [B, 1, h, w]."""

    patches: list[Tensor]
    heads: list[Tensor]


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    """Spectrally normalised (arXiv 1802.05957)."""
    return spectral_norm(nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2))


def _layers(*convolutions: nn.Module) -> nn.Sequential:
    """With leaky ReLUs in between."""
    between = (layer for convolution in convolutions for layer in (nn.LeakyReLU(0.2), convolution))
    return nn.Sequential(*list(between)[1:])


def _patch_critic(channels: int, unstrided: int = 0) -> nn.Sequential:
    first = [_conv(6, unstrided, 3)] if unstrided else []
    return _layers(
        *first,
        _conv(unstrided or 6, channels, 4, 2),
        _conv(channels, 2 * channels, 4, 2),
        _conv(2 * channels, 3 * channels, 3),
        _conv(3 * channels, 1, 3),
    )


class CriticNetwork(nn.Module):
    """Pictures and faithful pictures, RGB [B, 3, H, W] in [0, 1], sides at least 24, and EfficientNet-Lite0's features
    of the pictures (shifted and scaled otherwise, maybe), five stages -> logits."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.ModuleList(
            _patch_critic(channels, 0 if scale else _UNSTRIDED) for scale, channels in enumerate(_PATCHES)
        )
        # As a projected discriminator (arXiv 2111.01007), without its random projections.
        self.heads = nn.ModuleList(
            _layers(_conv(channels, _HEAD, 1), _conv(_HEAD, _HEAD, 3), _conv(_HEAD, 1, 1)) for channels in _FEATURES
        )

    def forward(self, pictures: Tensor, faithful: Tensor, features: list[Tensor]) -> Logits:
        pairs = 2 * torch.cat([pictures, faithful], 1) - 1
        patches = []
        for scale, critic in enumerate(self.patches):
            if scale:
                pairs = F.avg_pool2d(F.pad(pairs, (1, 1, 1, 1), mode="replicate"), 4, 2)
            patches.append(critic(pairs).float())
        heads = [critic(stage).float() for critic, stage in zip(self.heads, features[1:], strict=True)]
        return Logits(patches, heads)


class Shown(NamedTuple):
    """What the critics learn from: real and fake pictures with the same faithful ones, and features of both."""

    real: Tensor
    fake: Tensor
    faithful: Tensor
    real_features: list[Tensor]
    fake_features: list[Tensor]


class Critics:
    """The critics with their optimiser; hinge losses, means over the critics of each kind."""

    def __init__(self, device: torch.device, group: Group, lr: float) -> None:
        self.network = CriticNetwork().to(device).to(memory_format=torch.channels_last)
        self._spread, self._device, self._group, self._lr = group.spread(self.network), device, group, lr
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.0, betas=(0.0, 0.99), weight_decay=1e-4)
        self._names: optim.Names = {parameter: name for name, parameter in self.network.named_parameters()}
        self._shown: list[Shown] = []

    def judge(self, fake: Tensor, faithful: Tensor, features: list[Tensor]) -> dict[str, Tensor]:
        """What generated pictures pay for looking unreal, by kind; the critics get no gradient."""
        self.network.requires_grad_(False)
        logits = self.network(fake, faithful, features)
        return {kind: -_mean([logit.mean() for logit in found]) for kind, found in logits._asdict().items()}

    def show(self, shown: Shown) -> None:
        """A part of the batch that the next step learns from."""
        self._shown.append(shown)

    def step(self, factor: float) -> dict[str, float]:
        """One step on what the critics were shown, at their rate times `factor`; their losses, for the log."""
        if not self._shown:
            return {}
        self.network.requires_grad_(True)
        sums = dict.fromkeys(Logits._fields, 0.0)
        for part in self._shown:
            both = [torch.cat(pair).detach() for pair in zip(part.real_features, part.fake_features, strict=True)]
            pictures = torch.cat([part.real, part.fake]).detach()
            logits = Logits(*self._spread(pictures, torch.cat([part.faithful] * 2), both))
            losses = {kind: _mean([_hinge(logit) for logit in found]) for kind, found in logits._asdict().items()}
            (torch.stack(list(losses.values())).sum() / len(self._shown)).backward()
            for kind, loss in losses.items():
                sums[kind] += float(loss.detach()) / len(self._shown)
        self._shown.clear()
        for settings in self.optimizer.param_groups:
            settings["lr"] = factor * self._lr
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        if all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        total = self._group.sum(sums, self._device)
        return {f"discriminator_{kind}": value / self._group.size for kind, value in total.items()}

    def tensors(self) -> Parts:
        """The parts of a checkpoint that hold them."""
        return {
            "critics": self.network.state_dict(),
            "critics_adamw": optim.state_tensors(self.optimizer, self._names),
        }

    def load(self, parts: Parts) -> None:
        """Puts back what `tensors` gave; a checkpoint without critics leaves them untrained."""
        self._shown.clear()
        if "critics" in parts:
            self.network.load_state_dict(parts["critics"])
            optim.load_state_tensors(self.optimizer, self._names, parts["critics_adamw"])


def _mean(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).mean()


def _hinge(logits: Tensor) -> Tensor:
    """Of a batch whose first half is real."""
    real, fake = logits.chunk(2)
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
