"""MaskGIT's VQGAN (arXiv 2202.04200): the pixel decoder of `titokc.models.titok`, and its proxy codes in training.

Its 1024 codes on a 16x16 grid are what TiTok's first training stage predicts; its decoder, fine-tuned, is the last
part of the legacy TiTok models. Module names follow the released weights, as converted by open-muse.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titokc.models.precision import full_precision
from titokc.models.quantizers import VectorQuantizer

PIXEL_CODES = 1024
PIXEL_CODE_SIZE = 256
_MULTIPLIERS = (1, 1, 2, 2, 4)


def _conv(inputs: int, outputs: int, kernel: int = 3, bias: bool = True) -> nn.Conv2d:
    """At stride 1 with an odd kernel, TensorFlow's "same" padding is half the kernel on each side."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = _norm(inputs)
        self.conv1 = _conv(inputs, outputs, bias=False)
        self.norm2 = _norm(outputs)
        self.conv2 = _conv(outputs, outputs, bias=False)
        if inputs != outputs:
            self.nin_shortcut = _conv(outputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x), inplace=True))
        y = self.conv2(F.silu(self.norm2(y), inplace=True))
        # The released weights were trained with the shortcut on conv2's output, not on the block's input.
        return self.nin_shortcut(y).add_(y) if hasattr(self, "nin_shortcut") else y.add_(x)


class Doubling(nn.Conv2d):
    """Nearest upsampling by two and a 3x3 convolution, in 4/9 of the products: an output sees 2x2 inputs, so it is one
    transposed convolution, whose 4x4 kernel sums elements of the 3x3 one."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.transpose(0, 1).flip(2, 3)
        kernel = F.pad(kernel, (0, 0, 0, 1)) + F.pad(kernel, (0, 0, 1, 0))
        kernel = F.pad(kernel, (0, 1)) + F.pad(kernel, (1, 0))
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)


class Level(nn.Module):
    """Two residual blocks at one resolution; `upsample` doubles it afterwards."""

    def __init__(self, inputs: int, outputs: int, upsample: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList([ResidualBlock(inputs, outputs), ResidualBlock(outputs, outputs)])
        if upsample:
            self.upsample_conv = Doubling(outputs)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if hasattr(self, "upsample_conv"):
            x = self.upsample_conv(x)
        return x


class PixelEncoder(nn.Module):
    """RGB [B, 3, S, S] in [0, 1] -> latents [B, 256, S/16, S/16]."""

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        widths = [channels * multiplier for multiplier in _MULTIPLIERS]
        self.conv_in = _conv(3, channels, bias=False)
        self.down = nn.ModuleList([Level(*pair) for pair in zip([channels, *widths], widths, strict=False)])
        self.mid = nn.ModuleList([ResidualBlock(widths[-1], widths[-1]) for _ in range(2)])
        self.norm_out = _norm(widths[-1])
        self.conv_out = _conv(widths[-1], PIXEL_CODE_SIZE, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for at, level in enumerate(self.down):
            x = level(x if at == 0 else F.avg_pool2d(x, 2))
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class PixelDecoder(nn.Module):
    """Latents [B, 256, S/16, S/16] -> RGB [B, 3, S, S], nominally in [0, 1]."""

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        widths = [channels * multiplier for multiplier in _MULTIPLIERS]
        self.conv_in = _conv(PIXEL_CODE_SIZE, widths[-1])
        self.mid = nn.ModuleList([ResidualBlock(widths[-1], widths[-1]) for _ in range(2)])
        above = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList([Level(above[at], widths[at], upsample=at > 0) for at in range(len(widths))])
        self.norm_out = _norm(channels)
        self.conv_out = _conv(channels, 3)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.conv_in(latents)
        for block in self.mid:
            x = block(x)
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class MaskGITVQGAN(nn.Module):
    """The whole VQGAN, in the layout of maskgit-vqgan-imagenet-f16-256.bin: images <-> codes in 0..1023.

    Its `quantize` and `decoder` have the layouts of a legacy TiTok's `pixel_quantize` and `pixel_decoder`.
    """

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        self.encoder = PixelEncoder(channels)
        self.decoder = PixelDecoder(channels)
        self.quantize = VectorQuantizer(PIXEL_CODES, PIXEL_CODE_SIZE, l2_norm=False)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """RGB [B, 3, S, S] in [0, 1], S a multiple of 16 -> int64 codes [B, (S/16)^2], row by row; in float32."""
        with full_precision(images.device):
            latents = self.encoder(images.float())
            return self.quantize.assign(latents.flatten(2).transpose(1, 2))
