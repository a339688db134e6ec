"""TiTok (arXiv 2406.07550) exactly as released; `titokc.weights` loads it, the trainer trains it.

    images [B, 3, S, S] -> patches P + latent tokens K -> ViT -> latents [B, K, T] -> indices [B, K]
    indices -> vectors [B, K, T] + P mask tokens -> ViT -> patch outputs -> pixels

The state dict has the names and shapes of the released weights. Legacy (two-stage) models end in proxy-code logits
[B, 1024, S/16, S/16], whose softmax mixes a pixel codebook that MaskGIT's pixel decoder turns into RGB.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titokc.errors import UsageError
from titokc.models.blocks import Block, full_precision
from titokc.models.interface import Reconstruction, Tokenizer
from titokc.models.pixel_decoder import PIXEL_CODE_SIZE, PIXEL_CODES, PixelDecoder
from titokc.models.quantizers import FiniteScalarQuantizer, VectorQuantizer
from titokc.models.titok_config import TiTokConfig, ViTSize


class ProxyPrediction(NamedTuple):
    """What stage 1 trains on. logits: [B, 1024, P] (the classes where `cross_entropy` wants them), P row by row.
    indices: int64 [B, K]. quantizer_loss: scalar."""

    logits: Tensor
    indices: Tensor
    quantizer_loss: Tensor


class _ViT(nn.Module):
    """Class token, patches and latent tokens through one transformer; the encoder and decoder add their two ends."""

    def __init__(self, size: ViTSize, patches: int, tokens: int) -> None:
        super().__init__()
        self.class_embedding = _embedding(1, size.width)
        self.positional_embedding = _embedding(1 + patches, size.width)
        self.latent_token_positional_embedding = _embedding(tokens, size.width)
        self.ln_pre = nn.LayerNorm(size.width)
        self.transformer = nn.ModuleList([Block(size.width, size.heads) for _ in range(size.layers)])
        self.ln_post = nn.LayerNorm(size.width)

    def run(self, patches: Tensor, latents: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Patches [B, P, D] and latents [B, k, D] -> both again. keep: bool [B, k], latents that can be seen."""
        batch, count, _ = patches.shape
        image = torch.cat([self.class_embedding.expand(batch, 1, -1), patches], 1) + self.positional_embedding
        latents = latents + self.latent_token_positional_embedding[: latents.shape[1]]
        x = self.ln_pre(torch.cat([image, latents], 1))
        if keep is not None:
            keep = F.pad(keep, (1 + count, 0), value=True)
        for block in self.transformer:
            x = block(x, keep)
        return self.ln_post(x[:, 1 : 1 + count]), self.ln_post(x[:, 1 + count :])


class Encoder(_ViT):
    """RGB [B, 3, S, S] and latent tokens [K, D] -> latents [B, K, T]."""

    def __init__(self, config: TiTokConfig) -> None:
        width = config.encoder.width
        super().__init__(config.encoder, config.patches, config.num_latent_tokens)
        self.is_legacy = config.is_legacy
        self.patch_embed = nn.Conv2d(3, width, config.patch_size, config.patch_size)
        self.conv_out = nn.Conv2d(width, config.token_size, 1)

    def forward(self, images: Tensor, latent_tokens: Tensor) -> Tensor:
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        _, latents = self.run(patches, latent_tokens.expand(len(images), -1, -1))
        batch, tokens, width = latents.shape
        # The legacy models read [K, D] as [D, K] without transposing, and were trained that way.
        latents = latents.reshape(batch, width, tokens) if self.is_legacy else latents.transpose(1, 2)
        return self.conv_out(latents.unsqueeze(-1)).squeeze(-1).transpose(1, 2)


class Decoder(_ViT):
    """Vectors [B, k, T] -> proxy-code logits [B, 1024, S/16, S/16] (legacy) or RGB [B, 3, S, S]."""

    def __init__(self, config: TiTokConfig) -> None:
        width, patch = config.decoder.width, config.patch_size
        super().__init__(config.decoder, config.patches, config.num_latent_tokens)
        self.grid = config.image_size // patch
        self.patch_size = patch
        self.is_legacy = config.is_legacy
        self.mask_token = nn.Parameter(_embedding(1, width).data.unsqueeze(0))
        self.decoder_embed = nn.Linear(config.token_size, width)
        if config.is_legacy:
            self.ffn = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.Tanh(), nn.Conv2d(2 * width, PIXEL_CODES, 1))
        else:
            self.ffn = nn.Sequential(nn.Conv2d(width, 3 * patch * patch, 1))
            self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, vectors: Tensor, keep: Tensor | None = None) -> Tensor:
        masks = self.mask_token.expand(len(vectors), self.grid**2, -1)
        patches, _ = self.run(masks, self.decoder_embed(vectors), keep)
        outputs = self.ffn(patches.transpose(1, 2).unflatten(2, (self.grid, self.grid)).contiguous())
        if self.is_legacy:
            return outputs
        # Channels are (patch row, patch column, colour).
        tiles = outputs.unflatten(1, (self.patch_size, self.patch_size, 3))
        return self.conv_out(tiles.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3))


class TiTok(Tokenizer):
    """A TiTok tokenizer, with random weights until `load_state_dict`."""

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        self.codebook_size = config.codebook_size
        self.max_tokens = config.num_latent_tokens
        self.min_tokens = config.min_tokens or config.num_latent_tokens
        self.nested = config.min_tokens > 0
        self.latent_tokens = _embedding(config.num_latent_tokens, config.encoder.width)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize: VectorQuantizer | FiniteScalarQuantizer
        if config.fsq_levels:
            self.quantize = FiniteScalarQuantizer(config.fsq_levels)
        else:
            self.quantize = VectorQuantizer(config.codebook_size, config.token_size, config.use_l2_norm)
        for part in (self.encoder, self.decoder):
            part.apply(_initialise)
        if config.is_legacy:
            self.pixel_quantize = VectorQuantizer(PIXEL_CODES, PIXEL_CODE_SIZE, l2_norm=False)
            self.pixel_decoder = PixelDecoder(config.pixel_channels)

    @torch.no_grad()
    def encode(self, images: Tensor, tokens: int | None = None, effort: int = 0) -> Tensor:  # noqa: ARG002
        """See `Tokenizer.encode`. UsageError for a number of tokens that the model does not make."""
        count = self.token_count(tokens)
        return self.quantize.assign(self.latents(images)[:, :count])

    def latents(self, images: Tensor) -> Tensor:
        """RGB [B, 3, S, S] -> float32 latents [B, K, T], what `encode` quantises."""
        with full_precision(images.device):
            return self.encoder(images.float(), self.latent_tokens)

    def decode(self, indices: Tensor) -> Tensor:
        """See `Tokenizer.decode`. Runs under the caller's autocast, but for the quantiser and the softmax."""
        self.check_indices(indices)
        return self._pixels(self.decoder(self.quantize.lookup(indices)))

    def forward(self, images: Tensor, tokens: int | Tensor | None = None) -> Reconstruction:
        """See `Tokenizer.forward`. Where `tokens` is a tensor, `indices` keeps all K columns, and those past an image's
        count were hidden from the decoder and left out of the loss."""
        decoded, indices, loss = self._training_pass(images, tokens)
        return Reconstruction(self._pixels(decoded), indices, loss)

    def proxy_logits(self, images: Tensor, tokens: int | Tensor | None = None) -> ProxyPrediction:
        """The training pass of stage 1, legacy models only: up to the logits over the proxy codes of `MaskGITVQGAN`."""
        if not self.config.is_legacy:
            raise UsageError("this model predicts pixels, not proxy codes: stage 1 needs a legacy configuration")
        decoded, indices, loss = self._training_pass(images, tokens)
        return ProxyPrediction(decoded.float().flatten(2), indices, loss)

    def _training_pass(self, images: Tensor, tokens: int | Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        latents = self.encoder(images, self.latent_tokens)
        keep = None
        if isinstance(tokens, Tensor):
            keep = torch.arange(self.max_tokens, device=latents.device) < tokens.to(latents.device)[:, None]
        elif tokens is not None:
            assert 1 <= tokens <= self.max_tokens
            latents = latents[:, :tokens]
        vectors, indices, loss = self.quantize(latents, keep)
        return self.decoder(vectors, keep), indices, loss

    def _pixels(self, decoded: Tensor) -> Tensor:
        if not self.config.is_legacy:
            return decoded.float()
        with torch.autocast(decoded.device.type, enabled=False):
            mixture = decoded.float().softmax(1)
            pixel_latents = torch.einsum("bvhw,vc->bchw", mixture, self.pixel_quantize.embedding.weight)
        if decoded.is_cuda:
            pixel_latents = pixel_latents.contiguous(memory_format=torch.channels_last)
        return self.pixel_decoder(pixel_latents).float()


def _embedding(count: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(count, width) * width**-0.5)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
