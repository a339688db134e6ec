"""The adversaries of the natural decoder: critics of patches at three scales, and of EfficientNet-Lite0's features.

Each gives many logits a picture, high for photographs. `titokc.train.objectives.natural` says what they are shown.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from titokc.train.adversary import Adversary
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


class Critics(Adversary[Shown]):
    """Hinge losses, means over the critics of each kind."""

    part = "critics"

    def __init__(self, device: torch.device, group: Group, lr: float) -> None:
        network = CriticNetwork().to(device).to(memory_format=torch.channels_last)
        super().__init__(network, group, lr, (0.0, 0.99))

    def judge(self, fake: Tensor, faithful: Tensor, features: list[Tensor]) -> dict[str, Tensor]:
        """What generated pictures pay for looking unreal, by kind; the critics get no gradient."""
        self.network.requires_grad_(False)
        logits = self.network(fake, faithful, features)
        return {kind: -_mean([logit.mean() for logit in found]) for kind, found in logits._asdict().items()}

    def losses(self, shown: Shown) -> tuple[Tensor, dict[str, Tensor]]:
        both = [torch.cat(pair).float() for pair in zip(shown.real_features, shown.fake_features, strict=True)]
        logits = Logits(*self._spread(torch.cat([shown.real, shown.fake]), torch.cat([shown.faithful] * 2), both))
        losses = {kind: _mean([_hinge(logit) for logit in found]) for kind, found in logits._asdict().items()}
        return torch.stack(list(losses.values())).sum(), losses


def _mean(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).mean()


def _hinge(logits: Tensor) -> Tensor:
    """Of a batch whose first half is real."""
    real, fake = logits.chunk(2)
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
