"""Pictures like the originals: pixel errors, perceptual distances, and an adversary's verdict.

The networks are in `titokc.judge.networks`, the adversary in `titokc.train.discriminator`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from titokc.judge.networks import LPIPS, ConvNeXtDistance, EfficientNetDistance
from titokc.models.interface import Reconstruction, Tokenizer
from titokc.models.precision import convolution_format
from titokc.train.discriminator import Discriminator
from titokc.train.objectives.interface import Objective, Setup, Shown
from titokc.train.validate import validate

_WITHOUT = "leave the term out (--set phases.0.objective.lpips=0, .convnext=0; .efficientnet=1 needs no download)"
# Each is imported and loaded only when its weight is above 0.
_DISTANCES: dict[str, Callable[[], nn.Module]] = {
    "efficientnet": EfficientNetDistance,
    "lpips": lambda: LPIPS("vgg", without=_WITHOUT),
    "convnext": lambda: ConvNeXtDistance(without=_WITHOUT),
}


@dataclass(frozen=True)
class Pixels:
    """Weights of the terms; a term of weight 0 is neither computed nor imported.

    l2, l1: pixels in [0, 1]. log_l2: see the function.
    efficientnet, lpips, convnext: perceptual distances (`titokc.judge.networks`).
    gan: hinge loss of the discriminator, from `gan_start` (part of the phase) on; lecam: its regulariser;
    discriminator_lr, discriminator_channels: its rate and width.
    quantizer: the tokenizer's own codebook and commitment terms.
    """

    l2: float = 1.0
    log_l2: float = 0.0
    l1: float = 0.0
    efficientnet: float = 0.0
    lpips: float = 0.0
    convnext: float = 0.0
    gan: float = 0.0
    gan_start: float = 0.0
    lecam: float = 0.001
    quantizer: float = 1.0
    discriminator_lr: float = 1e-4
    discriminator_channels: int = 128

    def scaled(self, times: int) -> "Pixels":
        return replace(self, discriminator_lr=self.discriminator_lr * times**0.5)


class PixelObjective(Objective[Pixels]):
    adversary: Discriminator | None = None

    def __init__(self, settings: Pixels, setup: Setup) -> None:
        super().__init__(settings, setup)
        made = {name: make() for name, make in _DISTANCES.items() if getattr(settings, name)}
        layout = convolution_format(setup.device)
        self._distances = {n: distance.to(setup.device).to(memory_format=layout) for n, distance in made.items()}
        if settings.gan:
            self.adversary = Discriminator(
                setup.device, setup.group, settings.discriminator_channels, settings.discriminator_lr, settings.lecam
            )

    def terms(self, tokenizer: Tokenizer, batch: Shown) -> tuple[dict[str, Tensor], Reconstruction]:
        made = tokenizer.reconstruct(batch.images, batch.keep, batch.latents)
        terms = self.errors(made.images, batch.images)
        if self.settings.quantizer:
            terms["quantizer"] = self.settings.quantizer * made.quantizer_loss
        if self.adversary is not None and batch.progress >= self.settings.gan_start:
            terms["gan"] = self.settings.gan * self.adversary.generator_term(made.images)
            if batch.latents is None:
                self.adversary.show((batch.images, made.images.detach().float()))
        return terms, made

    def errors(self, output: Tensor, images: Tensor) -> dict[str, Tensor]:
        """The weighted pixel and perceptual terms; output and images [B, 3, S, S] in [0, 1]."""
        weights, output = self.settings, output.float()
        terms = {}
        if weights.l2:
            terms["l2"] = weights.l2 * F.mse_loss(output, images)
        if weights.log_l2:
            terms["log_l2"] = weights.log_l2 * log_l2(output, images)
        if weights.l1:
            terms["l1"] = weights.l1 * F.l1_loss(output, images)
        for name, distance in self._distances.items():
            terms[name] = getattr(weights, name) * distance(output, images).mean()
        return terms

    def validate(self, tokenizer: Tokenizer, squares: Tensor) -> tuple[dict[str, float], Tensor]:
        """The loss is that of `errors`, the mean over the token counts."""
        return validate(tokenizer, squares, lambda *pair: sum(self.errors(*pair).values()), self.setup.group)


def log_l2(output: Tensor, images: Tensor) -> Tensor:
    """The mean of ln(1 + 10^4 mse) over images [B, 3, H, W] in [0, 1], which weighs them as PSNR does: a dB is worth
    the same in a smooth picture as in a busy one."""
    return (1e4 * (output - images).square().mean((1, 2, 3))).log1p().mean()
