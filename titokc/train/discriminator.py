"""The adversarial part of a training: a convolutional discriminator, its hinge loss and LeCam regularisation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titokc.train import optim
from titokc.train.distributed import Group

# Most of a gradient's norm.
_CLIP = 1.0


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


class Discriminator(nn.Sequential):
    """RGB [B, 3, H, W] in [0, 1] -> one logit a patch [B, 1, H/8, W/8], high for real ones."""

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


class Adversary:
    """A discriminator with its optimiser and the running means of its logits, which LeCam (arXiv 2104.03310) needs."""

    def __init__(
        self, device: torch.device, group: Group, channels: int = 128, lr: float = 1e-4, lecam: float = 0.001
    ) -> None:
        self.network = Discriminator(channels).to(device)
        self._spread = group.spread(self.network)
        self._device, self._group, self._lr, self._lecam = device, group, lr, lecam
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.0, betas=(0.9, 0.999), weight_decay=1e-4)
        self._names: optim.Names = {parameter: name for name, parameter in self.network.named_parameters()}
        self.real_mean, self.fake_mean = 0.0, 0.0
        self._shown: list[tuple[Tensor, Tensor]] = []

    def generator_term(self, output: Tensor) -> Tensor:
        """What the reconstructions [B, 3, H, W] pay for looking unreal; the discriminator gets no gradient."""
        self.network.requires_grad_(False)
        return -self.network(output).float().mean()

    def show(self, real: Tensor, fake: Tensor) -> None:
        """A part of the batch [B, 3, H, W] that the next step learns from."""
        self._shown.append((real, fake.detach().float()))

    def step(self, factor: float) -> dict[str, float]:
        """One hinge step of the discriminator on what it was shown, at its rate times `factor`; its loss and mean
        logits, for the log, if there was anything."""
        if not self._shown:
            return {}
        self.network.requires_grad_(True)
        sums = {"loss": 0.0, "real": 0.0, "fake": 0.0}
        for part in self._shown:
            share = len(part[0]) / sum(len(real) for real, _ in self._shown)
            real_logits, fake_logits = self._spread(torch.cat(part)).float().chunk(2)
            loss = F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()
            regulariser = F.relu(real_logits - self.fake_mean).square().mean()
            regulariser = regulariser + F.relu(self.real_mean - fake_logits).square().mean()
            ((loss + self._lecam * regulariser) * share).backward()
            found = {"loss": loss, "real": real_logits.mean(), "fake": fake_logits.mean()}
            for name, value in found.items():
                sums[name] += share * float(value.detach())
        self._shown.clear()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP)
        for settings in self.optimizer.param_groups:
            settings["lr"] = factor * self._lr
        if torch.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        means = {name: value / self._group.size for name, value in self._group.sum(sums, self._device).items()}
        self.real_mean = 0.999 * self.real_mean + 0.001 * means["real"]
        self.fake_mean = 0.999 * self.fake_mean + 0.001 * means["fake"]
        return {f"discriminator_{name}": value for name, value in means.items()}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The parts of a checkpoint that hold it."""
        means = torch.tensor([self.real_mean, self.fake_mean], dtype=torch.float64)
        return {
            "discriminator": {**self.network.state_dict(), "lecam_means": means},
            "discriminator_adamw": optim.state_tensors(self.optimizer, self._names),
        }

    def load(self, parts: dict[str, dict[str, Tensor]]) -> None:
        """Puts back what `tensors` gave; a checkpoint from before the discriminator leaves it untrained."""
        self._shown.clear()
        if "discriminator" not in parts:
            return
        tensors = dict(parts["discriminator"])
        self.real_mean, self.fake_mean = tensors.pop("lecam_means").tolist()
        self.network.load_state_dict(tensors)
        optim.load_state_tensors(self.optimizer, self._names, parts["discriminator_adamw"])
