"""nano's faithful decoder: a ViT that adds to the linear code what squared error can gain."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titokc.models.nano.config import NanoConfig
from titokc.models.nano.transform import WAVES


class _Block(nn.Module):
    """A pre-norm transformer block [B, P, D] -> [B, P, D] whose parts are chosen for training speed on a CPU: written
    out attention, and squared ReLU (Primer, arXiv 2109.08668). At first it adds biases only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)).softmax(-1).to(value.dtype)
        x = x + self.out((weights @ value).transpose(1, 2).flatten(2))
        hidden = F.relu(self.up(self.norm2(x)))
        return x + self.down(hidden * hidden)


class Decoder(nn.Module):
    """The ViT: what is known of a thumbnail -> what to add to it, and to the full picture."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.embed = nn.Linear(3 * config.patch_size**2, config.width)
        self.position = nn.Parameter(torch.randn(config.patches, config.width) * 0.02)
        self.blocks = nn.Sequential(*(_Block(config.width, config.heads) for _ in range(config.layers)))
        self.norm = nn.LayerNorm(config.width)
        self.count_embed = nn.Linear(WAVES, config.width)
        self.scale = config.image_size // config.thumb_size
        self.lap = config.lap
        lapped = config.patch_size + 2 * config.lap
        self.to_thumb = _zeros(config.width, 3 * lapped**2)
        self.to_detail = _zeros(config.width, 3 * (lapped * self.scale) ** 2)

    def forward(self, thumbs: Tensor, known: Tensor, detail: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Thumbnails [B, 3, S, S] and the part of all tokens that they are made of, [B] in (0, 1] -> what the ViT makes
        of them, normalised, [B, P, D], corrections [B, 3, S, S], and, if `detail`, [B, 3, image_size, image_size]."""
        patches = F.pixel_unshuffle(thumbs, self.patch_size).flatten(2).transpose(1, 2)
        waves = torch.cos(math.pi * known[:, None] * torch.arange(WAVES, device=known.device))
        x = self.embed(4 * patches) + self.count_embed(waves)[:, None]
        x = self.norm(self.blocks(x + self.position.to(x.dtype)))
        return x, self._joined(self.to_thumb(x), 1), self._joined(self.to_detail(x), self.scale) if detail else None

    def _joined(self, values: Tensor, scale: int) -> Tensor:
        """Corrections in tenths, of overlapping patches [B, P, 3 * (patch_size + 2 * lap)^2 * scale^2], which add up ->
        float32 [B, 3, S, S]."""
        side = math.isqrt(values.shape[1]) * self.patch_size * scale
        patch, lap = self.patch_size * scale, self.lap * scale
        columns = values.transpose(1, 2).float()
        return F.fold(columns, (side, side), patch + 2 * lap, padding=lap, stride=patch) * 0.1


def _zeros(width: int, values: int) -> nn.Linear:
    layer = nn.Linear(width, values)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
