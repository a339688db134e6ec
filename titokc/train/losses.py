"""What a training pass costs: the weighted terms of a phase, and the PSNR of a batch on its device.

Perceptual networks are in `titokc.judge.networks`, the adversarial terms in `titokc.train.discriminator`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titokc.judge.networks import LPIPS, ConvNeXtDistance, EfficientNetDistance
from titokc.models.interface import Reconstruction
from titokc.models.titok.tokenizer import ProxyPrediction
from titokc.train.recipes import Losses

_WITHOUT = "leave the term out (--set phases.0.losses.lpips=0, .convnext=0; .efficientnet=1 needs no download)"
# Each is imported and loaded only when its weight is above 0.
DISTANCES: dict[str, Callable[[], nn.Module]] = {
    "efficientnet": EfficientNetDistance,
    "lpips": lambda: LPIPS("vgg", without=_WITHOUT),
    "convnext": lambda: ConvNeXtDistance(without=_WITHOUT),
}


class Criterion:
    """The terms of the phases' losses; its networks are loaded when it is made, so that none is found missing later."""

    def __init__(self, phases: Iterable[Losses], device: torch.device) -> None:
        used = [name for weights in phases for name in DISTANCES if getattr(weights, name)]
        self._distances = {name: DISTANCES[name]().to(device) for name in dict.fromkeys(used)}

    def pixels(self, weights: Losses, output: Tensor, images: Tensor, quantizer_loss: Tensor) -> dict[str, Tensor]:
        """The weighted pixel, perceptual and quantiser terms by name; output and images [B, 3, S, S] in [0, 1]."""
        output = output.float()
        terms = {}
        if weights.l2:
            terms["l2"] = weights.l2 * F.mse_loss(output, images)
        if weights.log_l2:
            terms["log_l2"] = weights.log_l2 * (1e4 * (output - images).square().mean((1, 2, 3))).log1p().mean()
        if weights.l1:
            terms["l1"] = weights.l1 * F.l1_loss(output, images)
        for name, distance in self._distances.items():
            if weight := getattr(weights, name):
                terms[name] = weight * distance(output, images).mean()
        if weights.quantizer:
            terms["quantizer"] = weights.quantizer * quantizer_loss
        return terms

    def codes(self, weights: Losses, logits: Tensor, codes: Tensor, quantizer_loss: Tensor) -> dict[str, Tensor]:
        """The terms of stage 1: logits [B, V, P] against proxy codes [B, P]."""
        return {
            "codes": weights.codes * F.cross_entropy(logits.float(), codes),
            "quantizer": weights.quantizer * quantizer_loss,
        }


def reconstruction_loss(terms: dict[str, float]) -> float:
    """The part of a loss that must shrink: all but the adversary's verdict and the quantiser's own terms."""
    return sum(value for name, value in terms.items() if name not in {"gan", "quantizer"})


def psnr(output: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image [B]: [B, 3, H, W] against peak 1, the output clamped to [0, 1]."""
    error = (output.detach().float().clamp(0, 1) - images).square().mean((1, 2, 3))
    return -10 * error.clamp_min(1e-10).log10()


class Pass(nn.Module):
    """A tokenizer's training pass as a module of its own, so that one wrapper serves both of its kinds."""

    def __init__(self, tokenizer: nn.Module) -> None:
        super().__init__()
        self.tokenizer: Any = tokenizer

    def forward(
        self, images: Tensor, tokens: Tensor | None = None, latents: Tensor | None = None, proxy: bool = False
    ) -> Reconstruction | ProxyPrediction:
        """With `proxy` what stage 1 predicts; latents: see `Phase.search`."""
        if proxy:
            return self.tokenizer.proxy_logits(images, tokens)
        return self.tokenizer.reconstruct(images, tokens, latents)
