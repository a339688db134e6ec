"""The adversary of TiTok: a convolutional discriminator, its hinge loss and LeCam regularisation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titokc.models.precision import convolution_format
from titokc.train.adversary import Adversary
from titokc.train.distributed import Group


class BlurPool(nn.Module):
    """Halves the sides after a [1 3 3 1] low-pass (arXiv 1904.11486)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(taps, taps).expand(channels, 1, 4, 4).clone(), persistent=False)
        self.kernel: Tensor

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(padded, self.kernel.to(x.dtype), stride=2, groups=x.shape[1])


class DiscriminatorNetwork(nn.Sequential):
    """RGB [B, 3, H, W] in [0, 1] -> one logit a patch [B, 1, H/8, W/8], high for real ones.

    lecam_means: running means of the logits of real and of fake pictures, which LeCam (arXiv 2104.03310) needs.
    """

    def __init__(self, channels: int = 128, levels: int = 3) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 5, padding=2), nn.LeakyReLU(0.1)]
        for level in range(levels):
            inputs, outputs = channels << max(level - 1, 0), channels << level
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1),
                BlurPool(outputs),
                nn.GroupNorm(32, outputs),
                nn.LeakyReLU(0.1),
            ]
        super().__init__(*layers, nn.Conv2d(channels << (levels - 1), 1, 5, padding=2))
        self.register_buffer("lecam_means", torch.zeros(2))
        self.lecam_means: Tensor


class Discriminator(Adversary[tuple[Tensor, Tensor]]):
    """Is shown photographs and reconstructions, both [B, 3, H, W]. lecam: weight of the regulariser."""

    part = "discriminator"
    clip = 1.0
    network: DiscriminatorNetwork

    def __init__(
        self, device: torch.device, group: Group, channels: int = 128, lr: float = 1e-4, lecam: float = 0.001
    ) -> None:
        network = DiscriminatorNetwork(channels).to(device).to(memory_format=convolution_format(device))
        super().__init__(network, group, lr, (0.9, 0.999))
        self._lecam = lecam

    def generator_term(self, output: Tensor) -> Tensor:
        """What the reconstructions [B, 3, H, W] pay for looking unreal; the discriminator gets no gradient."""
        self.network.requires_grad_(False)
        return -self.network(output).float().mean()

    def losses(self, shown: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        real, fake = self._spread(torch.cat(shown)).float().chunk(2)
        real_mean, fake_mean = self.network.lecam_means
        loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        regulariser = F.relu(real - fake_mean).square().mean() + F.relu(real_mean - fake).square().mean()
        return loss + self._lecam * regulariser, {"loss": loss, "real": real.mean(), "fake": fake.mean()}

    def step(self, factor: float) -> dict[str, float]:
        found = super().step(factor)
        if found:
            new = torch.tensor([found["discriminator_real"], found["discriminator_fake"]])
            self.network.lecam_means.lerp_(new.to(self.network.lecam_means), 0.001)
        return found
