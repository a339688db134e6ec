"""TiTok's two transformers; `titokc.models.titok.tokenizer` puts the quantiser between them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titokc.models.precision import linear
from titokc.models.titok.config import TiTokConfig, ViTSize
from titokc.models.titok.pixel_decoder import PIXEL_CODES

ALL = slice(None)


class Attention(nn.Module):
    """Multi-head self-attention, with the parameter names of `torch.nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        xavier = (6 / (4 * width)) ** 0.5
        nn.init.uniform_(self.in_proj_weight, -xavier, xavier)

    def forward(self, x: Tensor, keep: Tensor | None = None, wanted: slice = ALL) -> Tensor:
        """[B, L, D] -> [B, L, D], of the wanted positions. keep: bool [B, L], those that may be attended to (None:
        all)."""
        projected = linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query = query[:, :, wanted]
        mask = None if keep is None else keep[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return linear(mixed.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)


class Mlp(nn.Module):
    """Linear, exact GELU, linear; four times as wide in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return linear(linear(x, self.c_fc.weight, self.c_fc.bias, gelu=True), self.c_proj.weight, self.c_proj.bias)


class Pointwise(nn.Conv2d):
    """[..., D] -> [..., E], with the weight [E, D, 1, 1] of the convolution that it is in the released models."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.flatten(1), self.bias)


class Block(nn.Module):
    """A pre-norm transformer block: [B, L, D] -> [B, L, D], of the wanted positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, keep: Tensor | None = None, wanted: slice = ALL) -> Tensor:
        x = x[:, wanted] + self.attn(self.ln_1(x), keep, wanted)
        return x + self.mlp(self.ln_2(x))


class ViT(nn.Module):
    """Class token, patches and latent tokens through one transformer; the encoder and decoder add their two ends."""

    def __init__(self, size: ViTSize, patches: int, tokens: int) -> None:
        super().__init__()
        self.class_embedding = embedding(1, size.width)
        self.positional_embedding = embedding(1 + patches, size.width)
        self.latent_token_positional_embedding = embedding(tokens, size.width)
        self.ln_pre = nn.LayerNorm(size.width)
        self.transformer = nn.ModuleList([Block(size.width, size.heads) for _ in range(size.layers)])
        self.ln_post = nn.LayerNorm(size.width)

    def run(self, patches: Tensor, latents: Tensor, wanted: slice, keep: Tensor | None = None) -> Tensor:
        """Patches [B, P, D] and latents [B, k, D] -> what is wanted of the class token, the patches and the latents.

        keep: bool [B, k], latents that can be seen. The last block works on what is wanted only.
        """
        batch, count, _ = patches.shape
        image = torch.cat([self.class_embedding.expand(batch, 1, -1), patches], 1) + self.positional_embedding
        latents = latents + self.latent_token_positional_embedding[: latents.shape[1]]
        x = self.ln_pre(torch.cat([image, latents], 1))
        if keep is not None:
            keep = F.pad(keep, (1 + count, 0), value=True)
        *blocks, last = self.transformer
        for block in blocks:
            x = block(x, keep)
        return self.ln_post(last(x, keep, wanted))


class Encoder(ViT):
    """RGB [B, 3, S, S] and latent tokens [K, D] -> latents [B, K, T]."""

    def __init__(self, config: TiTokConfig) -> None:
        width = config.encoder.width
        super().__init__(config.encoder, config.patches, config.num_latent_tokens)
        self.is_legacy = config.is_legacy
        self.patch_embed = nn.Conv2d(3, width, config.patch_size, config.patch_size)
        self.conv_out = Pointwise(width, config.token_size)

    def forward(self, images: Tensor, latent_tokens: Tensor) -> Tensor:
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        after_patches = slice(1 + patches.shape[1], None)
        latents = self.run(patches, latent_tokens.expand(len(images), -1, -1), after_patches)
        batch, tokens, width = latents.shape
        # The legacy models read [K, D] as [D, K] without transposing, and were trained that way.
        return self.conv_out(latents.reshape(batch, width, tokens).transpose(1, 2) if self.is_legacy else latents)


class Decoder(ViT):
    """Vectors [B, k, T] -> proxy-code logits [B, P, 1024] (legacy) or RGB [B, 3, S, S]."""

    def __init__(self, config: TiTokConfig) -> None:
        width, patch = config.decoder.width, config.patch_size
        super().__init__(config.decoder, config.patches, config.num_latent_tokens)
        self.grid = config.image_size // patch
        self.patch_size = patch
        self.is_legacy = config.is_legacy
        self.mask_token = nn.Parameter(embedding(1, width).data.unsqueeze(0))
        self.decoder_embed = nn.Linear(config.token_size, width)
        if config.is_legacy:
            self.ffn = nn.Sequential(Pointwise(width, 2 * width), nn.Tanh(), Pointwise(2 * width, PIXEL_CODES))
        else:
            self.ffn = nn.Sequential(Pointwise(width, 3 * patch * patch))
            self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, vectors: Tensor, keep: Tensor | None = None) -> Tensor:
        masks = self.mask_token.expand(len(vectors), self.grid**2, -1)
        outputs = self.ffn(self.run(masks, self.decoder_embed(vectors), slice(1, 1 + self.grid**2), keep))
        if self.is_legacy:
            return outputs
        # A patch's outputs are (row, column, colour).
        tiles = outputs.unflatten(2, (self.patch_size, self.patch_size, 3)).unflatten(1, (self.grid, self.grid))
        return self.conv_out(tiles.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3))


def embedding(count: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(count, width) * width**-0.5)
