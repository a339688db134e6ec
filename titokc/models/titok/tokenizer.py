"""TiTok (arXiv 2406.07550) exactly as released; `titokc.weights` loads it, the trainer trains it.

    images [B, 3, S, S] -> patches P + latent tokens K -> ViT -> latents [B, K, T] -> indices [B, K]
    indices -> vectors [B, K, T] + P mask tokens -> ViT -> patch outputs -> pixels

The state dict has the names and shapes of the released weights. Legacy (two-stage) models end in proxy-code logits
[B, P, 1024], whose softmax mixes a pixel codebook that MaskGIT's pixel decoder turns into RGB.
"""

import torch
from torch import Tensor, nn

from titokc.models.info import FAITHFUL
from titokc.models.interface import Code, Distance, Reconstruction, Tokenizer
from titokc.models.precision import full_precision
from titokc.models.quantizers import FiniteScalarQuantizer, VectorQuantizer
from titokc.models.titok.config import TiTokConfig
from titokc.models.titok.pixel_decoder import PIXEL_CODE_SIZE, PIXEL_CODES, PixelDecoder
from titokc.models.titok.vit import Decoder, Encoder, embedding


class TiTok(Tokenizer):
    """A TiTok tokenizer, with random weights until `load_state_dict`."""

    config: TiTokConfig
    shares_threads = torch.backends.mkldnn.is_available()  # `linear` of titokc.models.precision

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        self.config, self.info = config, config.info
        self.latent_tokens = embedding(config.num_latent_tokens, config.encoder.width)
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

    @property
    def codebooks(self) -> dict[str, VectorQuantizer]:
        found = {name: getattr(self, name, None) for name in ("quantize", "pixel_quantize")}
        return {name: part for name, part in found.items() if isinstance(part, VectorQuantizer)}

    def code(self) -> Code:
        """See `Tokenizer.code`: the encoder too, as two encoders' codes of one codebook are not alike."""
        config = self.config
        vit = {name: getattr(config.encoder, name) for name in ("width", "layers", "heads")}
        names = ("num_latent_tokens", "codebook_size", "token_size", "use_l2_norm", "is_legacy", "fsq_levels")
        fields = {"encoder": vit, **{name: getattr(config, name) for name in (*names, "image_size", "patch_size")}}
        parts = ("latent_tokens", "encoder.", "quantize.")
        return Code(1, fields, {n: tensor for n, tensor in self.state_dict().items() if n.startswith(parts)})

    @torch.no_grad()
    def encode(
        self,
        images: Tensor,
        tokens: int | None = None,
        effort: int = 0,  # noqa: ARG002
        distance: Distance | None = None,  # noqa: ARG002
    ) -> Tensor:
        """See `Tokenizer.encode`. UsageError for a number of tokens that the model does not make."""
        count = self.info.check_tokens(tokens)
        return self.quantize.assign(self.latents(images)[:, :count])

    def distances(self, images: Tensor) -> Tensor:
        """RGB [B, 3, S, S] -> squared distances [B, K, V] of the latents to every entry of the codebook."""
        assert isinstance(self.quantize, VectorQuantizer)
        return torch.stack([self.quantize.distances(latents) for latents in self.latents(images)])

    def latents(self, images: Tensor) -> Tensor:
        """RGB [B, 3, S, S] -> float32 latents [B, K, T], what `encode` quantises."""
        with full_precision(images.device):
            return self.encoder(images.float(), self.latent_tokens)

    def decode(self, tokens: Tensor, look: str = FAITHFUL) -> Tensor:
        """See `Tokenizer.decode`. Runs under the caller's autocast, but for the quantiser and the softmax."""
        assert look in self.info.looks
        return self._pixels(self.decoder(self.quantize.lookup(tokens)))

    def reconstruct(self, images: Tensor, keep: Tensor | None = None, latents: Tensor | None = None) -> Reconstruction:
        """See `Tokenizer.reconstruct`. `indices` has all K columns; those past an image's count were hidden from the
        decoder and left out of the loss."""
        assert latents is None
        decoded, indices, loss = self._training_pass(images, keep)
        return Reconstruction(self._pixels(decoded), indices, loss)

    def proxy_logits(self, images: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The training pass of stage 1, legacy models only: the logits [B, 1024, P] over the proxy codes of
        `MaskGITVQGAN` (P row by row, the classes where `cross_entropy` wants them), and the quantiser's loss."""
        assert self.config.is_legacy
        decoded, _, loss = self._training_pass(images, keep)
        return decoded.float().transpose(1, 2), loss

    def _training_pass(self, images: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        latents = self.encoder(images, self.latent_tokens)
        if keep is not None:
            keep = (
                torch.arange(self.info.max_tokens, device=latents.device)
                < keep.to(latents.device, non_blocking=True)[:, None]
            )
        vectors, indices, loss = self.quantize(latents, keep)
        return self.decoder(vectors, keep), indices, loss

    def _pixels(self, decoded: Tensor) -> Tensor:
        if not self.config.is_legacy:
            return decoded.float()
        with torch.autocast(decoded.device.type, enabled=False):
            mixed = decoded.float().softmax(2) @ self.pixel_quantize.embedding.weight
        # Seen as [B, C, H, W] this is in channels_last order, which convolutions are fastest in.
        return self.pixel_decoder(mixed.transpose(1, 2).unflatten(2, (self.decoder.grid, self.decoder.grid))).float()


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
