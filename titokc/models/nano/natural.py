"""nano's natural look: what squared error must leave out of a picture, edges and texture as photographs have them.

    faithful picture [B, 3, S, S], unshuffled by 4 -+            ViT's last features, spread    number of tokens
    noise [B, 8, S/4, S/4] -------------------------+-> stem ---------+ <----------------------------+
                                                        [B, W, S/4, S/4] --unshuffle--> inner: 6 residual blocks
                                                             |                          [B, 2W, S/8, S/8]
    picture <- last [S] <- fine [S/2] <- shuffle <- outer <--+ <-------- shuffle <-----------+
                             ^ noise [B, 4, S/2, S/2]

A sample, not a mean: it lies a little further from the original than the faithful picture, and looks nearer. It is
trained against discriminators and towards the local spectra of photographs (`titokc.train.objectives.natural`); the
noise comes from the tokens (`titokc.models.nano.noise`), so a file has one natural picture.

Ideas: residual blocks without norms (EDSR, arXiv 1707.02921); sub-pixel convolution (arXiv 1609.05158); a generator on
top of a decoder by squared error, which keeps what that knows (Hoogeboom et al., arXiv 2305.18231, with a diffusion).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titokc.models.nano.natural_numpy import BLOCKS, FINE_NOISE, NOISE, SCALE, SLOPE
from titokc.models.nano.noise import LAST_SHIFT, MIXING, STEP
from titokc.models.nano.transform import WAVES

NATURAL = "natural"


class _Residual(nn.Module):
    """[B, C, H, W] -> the same; at first next to nothing is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = _conv(channels, channels), _conv(channels, channels)
        nn.init.normal_(self.two.weight, std=1e-3)
        nn.init.zeros_(self.two.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(_leaky(self.one(_leaky(x))))


class Generator(nn.Module):
    """What to add to a faithful picture. width: W, channels at a quarter of its side. seen: D of the ViT's features."""

    def __init__(self, width: int, seen: int) -> None:
        super().__init__()
        inner, fine, last = 2 * width, width // 2, width // 4
        self.stem = _conv(48 + NOISE, width)
        self.vit = nn.Linear(seen, width)
        self.count = nn.Linear(WAVES, width)
        self.down = nn.Conv2d(4 * width, inner, 1)
        self.inner = nn.Sequential(*(_Residual(inner) for _ in range(BLOCKS)))
        self.up = nn.Conv2d(inner, 4 * width, 1)
        self.outer = _Residual(width)
        self.to_fine = nn.Conv2d(width, 4 * fine, 1)
        self.fine = _conv(fine + FINE_NOISE, fine)
        self.to_last = _conv(fine, 4 * last)
        self.last = _conv(last, 3)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, picture: Tensor, seen: Tensor, known: Tensor, noise: Tensor, fine_noise: Tensor) -> Tensor:
        """The sum to add, float32 [B, 3, S, S], of a faithful picture [B, 3, S, S] in 0..1 (or a part of one), `spread`
        features [B, W, S/4, S/4] of the same part, the part of all tokens that it is made of, [B] in (0, 1], and noise
        [B, NOISE, S/4, S/4] and [B, FINE_NOISE, S/2, S/2] of standard deviation 1."""
        waves = torch.cos(math.pi * known[:, None] * torch.arange(WAVES, device=known.device))
        x = self.stem(torch.cat([2 * F.pixel_unshuffle(picture - 0.5, 4), noise], 1))
        x = x + seen + self.count(waves)[:, :, None, None]
        y = self.inner(self.down(_leaky(F.pixel_unshuffle(x, 2))))
        x = self.outer(x + F.pixel_shuffle(self.up(_leaky(y)), 2))
        x = F.pixel_shuffle(self.to_fine(_leaky(x)), 2)
        x = x + self.fine(torch.cat([_leaky(x), fine_noise], 1))
        x = F.pixel_shuffle(self.to_last(_leaky(x)), 2)
        return SCALE * self.last(_leaky(x)).float()

    def spread(self, features: Tensor, side: int) -> Tensor:
        """The ViT's normalised last features [B, P, D] of a whole picture -> [B, W, side, side], bilinearly."""
        grid = math.isqrt(features.shape[1])
        maps = self.vit(features).transpose(1, 2).unflatten(2, (grid, grid))
        return F.interpolate(maps.float(), (side, side), mode="bilinear", align_corners=False)


def noise(tokens: Tensor, count: int) -> Tensor:
    """`titokc.models.nano.noise.noise` of each row, on its device: int64 [B, k] -> float32 [B, count]."""
    seed = torch.zeros_like(tokens[:, 0])
    for token in tokens.unbind(1):
        seed = _mix(seed ^ (token + 1))
    counter = torch.arange(1, count + 1, device=tokens.device) * _signed(STEP)
    uniform = _right(_mix(seed[:, None] + counter), 40).float() * 2**-24
    return (uniform - 0.5) * (2 * math.sqrt(3))


def _mix(z: Tensor) -> Tensor:
    for shift, factor in MIXING:
        z = (z ^ _right(z, shift)) * _signed(factor)
    return z ^ _right(z, LAST_SHIFT)


def _right(z: Tensor, shift: int) -> Tensor:
    """As for integers without sign."""
    return (z >> shift) & ((1 << (64 - shift)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)
