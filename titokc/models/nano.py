"""nano, the embedded tokenizer: a linear code that is good from the first step, and a ViT that learns what is missing.

    images -> thumbnail [B, 3, 64, 64] -> DCT -> the coefficients that photographs need most [B, C]
    coefficients -> residual vector quantiser, token by token (titokc.models.adaptive_rvq) -> indices [B, K]
    indices -> coefficients -> inverse DCT -> thumbnail -> + ViT decoder's correction -> images

The ViT ends in zeros, so an untrained nano is the linear code. Every token refines the few coefficients that are most
wrong after the tokens before it, so each prefix of a code is a code. Because sizes change by cutting or padding the
DCT, the same weights work at 64 pixels (pretraining) and at full size. The ViT is not needed for encoding.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titokc.models.adaptive_rvq import AdaptiveResidualVQ, Progress
from titokc.models.blocks import full_precision
from titokc.models.interface import Reconstruction, Tokenizer

# Orthonormal and near the principal components of photographs: brightness, red - blue, green - magenta.
_OPPONENT = (
    (1 / math.sqrt(3), 1 / math.sqrt(3), 1 / math.sqrt(3)),
    (1 / math.sqrt(2), 0.0, -1 / math.sqrt(2)),
    (1 / math.sqrt(6), -2 / math.sqrt(6), 1 / math.sqrt(6)),
)
# The search for better indices: its first step, and how steps change when one helped and when it did not.
_FIRST_STEP = 0.5
_STEP_CHANGES = (1.2, 0.5)
# The same without looking whether it helped.
_TRAINING_STEP = 0.4
# Cosines that tell the decoder how many tokens there are.
_WAVES = 8


@dataclass(frozen=True)
class NanoConfig:
    """image_size: side of the pictures. thumb_size: side of what the ViT sees. coefficients: how many of the
    thumbnail's DCT can be coded. token_size: how many one token refines. hidden, refresh: of the network that chooses
    them. num_tokens, min_tokens: the longest and the shortest code. width, heads, layers: of the ViT. lap: how many
    pixels of the thumbnail what a patch adds reaches into its neighbours."""

    image_size: int = 256
    thumb_size: int = 64
    patch_size: int = 8
    coefficients: int = 2048
    num_tokens: int = 128
    min_tokens: int = 32
    codebook_size: int = 4096
    token_size: int = 8
    hidden: int = 256
    refresh: int = 4
    width: int = 256
    heads: int = 4
    layers: int = 10
    lap: int = 2

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that do not go together."""
        for whole, part in (("width", "heads"), ("thumb_size", "patch_size"), ("image_size", "thumb_size")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(f"{whole} {getattr(self, whole)} is no multiple of {part} {getattr(self, part)}")
        if not 0 <= self.lap <= self.patch_size // 2:
            raise ValueError(f"lap {self.lap}: expected 0 to {self.patch_size // 2}, half of a patch")
        if self.min_tokens > self.num_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is more than num_tokens {self.num_tokens}")
        if not self.token_size <= self.coefficients <= 3 * self.thumb_size**2:
            raise ValueError(f"{self.coefficients} coefficients: expected token_size .. 3 * thumb_size^2")

    @property
    def patches(self) -> int:
        return (self.thumb_size // self.patch_size) ** 2


def dct_matrix(size: int, frequencies: int) -> Tensor:
    """The first rows of the orthonormal DCT-II of `size` points: float32 [frequencies, size]."""
    k, n = torch.arange(frequencies, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * k * (n + 0.5)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def resize(images: Tensor, size: int) -> Tensor:
    """[B, C, S, S] -> [B, C, size, size] by cutting or padding the DCT: no frequency that both hold is changed."""
    side = images.shape[-1]
    if side == size:
        return images
    shared = min(side, size)
    matrix = dct_matrix(size, shared).T @ dct_matrix(side, shared) * math.sqrt(size / side)
    matrix = matrix.to(images.device)
    return matrix @ images @ matrix.T


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
        self.count_embed = nn.Linear(_WAVES, config.width)
        self.scale = config.image_size // config.thumb_size
        self.lap = config.lap
        lapped = config.patch_size + 2 * config.lap
        self.to_thumb = _zeros(config.width, 3 * lapped**2)
        self.to_detail = _zeros(config.width, 3 * (lapped * self.scale) ** 2)

    def forward(self, thumbs: Tensor, known: Tensor, detail: bool) -> tuple[Tensor, Tensor | None]:
        """Thumbnails [B, 3, S, S] and the part of all tokens that they are made of, [B] in (0, 1] -> corrections
        [B, 3, S, S] and, if `detail`, [B, 3, image_size, image_size]."""
        patches = F.pixel_unshuffle(thumbs, self.patch_size).flatten(2).transpose(1, 2)
        waves = torch.cos(math.pi * known[:, None] * torch.arange(_WAVES, device=known.device))
        x = self.embed(4 * patches) + self.count_embed(waves)[:, None]
        x = self.norm(self.blocks(x + self.position.to(x.dtype)))
        fine = self._joined(self.to_detail(x), self.scale) if detail else None
        return self._joined(self.to_thumb(x), 1), fine

    def _joined(self, values: Tensor, scale: int) -> Tensor:
        """Corrections in tenths, of overlapping patches [B, P, 3 * (patch_size + 2 * lap)^2 * scale^2], which add up ->
        float32 [B, 3, S, S]."""
        side = math.isqrt(values.shape[1]) * self.patch_size * scale
        patch, lap = self.patch_size * scale, self.lap * scale
        columns = values.transpose(1, 2).float()
        return F.fold(columns, (side, side), patch + 2 * lap, padding=lap, stride=patch) * 0.1


class NanoTokenizer(Tokenizer):
    """The tokenizer described at the top of this file."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        self.codebook_size = config.codebook_size
        self.min_tokens, self.max_tokens = config.min_tokens, config.num_tokens
        self.nested = self.searches = True
        self.quantizer = AdaptiveResidualVQ(
            config.coefficients,
            config.num_tokens,
            config.token_size,
            config.codebook_size,
            config.hidden,
            config.refresh,
        )
        self.decoder = Decoder(config)
        self.register_buffer("opponent", torch.tensor(_OPPONENT), persistent=False)
        self.register_buffer("dct", dct_matrix(config.thumb_size, config.thumb_size), persistent=False)
        self.register_buffer("coded", torch.zeros(config.coefficients, dtype=torch.int32))

    opponent: Tensor
    dct: Tensor
    coded: Tensor

    @property
    def training_sizes(self) -> tuple[int, ...]:
        return (self.config.thumb_size, self.image_size)

    @torch.no_grad()
    def encode(self, images: Tensor, tokens: int | None = None, effort: int = 0) -> Tensor:
        """See `Tokenizer.encode`. UsageError for a number of tokens that the model does not make."""
        counts = torch.full((len(images),), self.token_count(tokens), device=images.device)
        if not effort:
            return self.quantizer.assign(self._analyse(images - 0.5), counts)[0]
        with torch.inference_mode(False), torch.enable_grad(), full_precision(images.device):
            return self._search(images.float().clone(), counts, effort)

    def _search(self, images: Tensor, counts: Tensor, rounds: int) -> Tensor:
        """Indices whose decoded picture is nearer than that of the nearest ones.

        What is quantised moves from the picture's own coefficients to those that the decoder would need, by the
        gradient of its squared error; each picture's steps grow while they help and shrink when they do not.
        """
        goal = self._analyse(images - 0.5)
        step = torch.full_like(goal[:, :1], _FIRST_STEP)
        least = torch.full_like(step, torch.inf)
        from_goal = from_wanted = goal
        best = torch.zeros(len(images), int(counts.max()), dtype=torch.int64, device=images.device)
        for done in range(rounds + 1):
            indices, coded = self.quantizer.assign(goal, counts)
            coded.requires_grad_(done < rounds)
            error = (self._synthesise(coded, counts, self.image_size) - images).square().mean((1, 2, 3))[:, None]
            better = error.detach() < least
            least = torch.where(better, error.detach(), least)
            best = torch.where(better, indices, best)
            if done == rounds:
                break
            wanted = _wanted(coded.detach(), torch.autograd.grad(error.sum(), coded)[0])
            from_goal, from_wanted = torch.where(better, goal, from_goal), torch.where(better, wanted, from_wanted)
            step = step * torch.where(better, *_STEP_CHANGES)
            goal = from_goal + step * (from_wanted - from_goal)
        return best

    def decode(self, indices: Tensor) -> Tensor:
        """See `Tokenizer.decode`. Runs under the caller's autocast, but for the linear part."""
        self.check_indices(indices)
        counts = torch.full((len(indices),), indices.shape[1], device=indices.device)
        return self._synthesise(self.quantizer.lookup(indices), counts, self.image_size)

    def forward(
        self, images: Tensor, tokens: int | Tensor | None = None, latents: Tensor | None = None
    ) -> Reconstruction:
        """See `Tokenizer.forward`; images [B, 3, S, S] with S = image_size or thumb_size, reconstructed at that size.

        latents: what to quantise instead of the images' own coefficients [B, C]. Only the decoder has gradients."""
        if not isinstance(tokens, Tensor):
            tokens = torch.full((len(images),), tokens or self.max_tokens, device=images.device)
        if latents is None:
            latents = self._analyse(images - 0.5)
        indices, quantised = self.quantizer.assign(latents, tokens)
        quantised.requires_grad_(torch.is_grad_enabled())
        made = self._synthesise(quantised, tokens, images.shape[-1])
        return Reconstruction(made, indices, made.new_zeros(()), latents, quantised)

    def better_latents(self, latents: Tensor, quantised: Tensor, gradient: Tensor) -> Tensor:
        """See `Tokenizer.better_latents`; all [B, C]."""
        return latents + _TRAINING_STEP * (_wanted(quantised, gradient) - latents)

    @torch.no_grad()
    def initialise(self, batches: Iterator[Tensor], progress: Progress = iter) -> None:
        """Fits the quantiser to the training images [B, 3, S, S] of `batches`: 32 of them for each entry."""
        whole: list[Tensor] = []
        while sum(map(len, whole)) < 2 * self.codebook_size:
            whole.append(self._transform(next(batches) - 0.5).cpu())
        variances = torch.cat(whole).square().mean(0)
        self.coded.copy_(variances.argsort(descending=True)[: self.config.coefficients])
        samples = [part[:, self.coded.cpu().long()] for part in whole]
        del whole
        while sum(map(len, samples)) < 32 * self.codebook_size:
            samples.append(self._analyse(next(batches) - 0.5).cpu())
        with full_precision(self.device):
            self.quantizer.fit(torch.cat(samples).to(self.device), progress=progress)

    def _analyse(self, centred: Tensor) -> Tensor:
        """RGB around zero [B, 3, S, S] -> float32 coefficients [B, C], in units of pixel values."""
        return self._transform(centred)[:, self.coded.long()]

    @torch.no_grad()
    def _transform(self, centred: Tensor) -> Tensor:
        """RGB around zero [B, 3, S, S] -> the thumbnail's DCT in opponent colours, float32 [B, 3 * thumb_size^2]."""
        with full_precision(centred.device):
            thumbs = resize(centred.float(), self.config.thumb_size)
            opponent = torch.einsum("dc,bchw->bdhw", self.opponent, thumbs)
            return (self.dct @ opponent @ self.dct.T).flatten(1) / self.config.thumb_size

    def _synthesise(self, coefficients: Tensor, counts: Tensor, size: int) -> Tensor:
        """Coefficients [B, C], of which the first tokens [B] are known -> float32 RGB [B, 3, size, size]."""
        side = self.config.thumb_size
        spectrum = coefficients.new_zeros(len(coefficients), 3 * side * side)
        spectrum[:, self.coded.long()] = coefficients
        with full_precision(coefficients.device):
            opponent = self.dct.T @ spectrum.unflatten(1, (3, side, side)) @ self.dct * side
            thumbs = torch.einsum("dc,bdhw->bchw", self.opponent, opponent)
        correction, detail = self.decoder(thumbs, counts / self.max_tokens, detail=size != side)
        with full_precision(coefficients.device):
            images = resize(thumbs + correction, size) + 0.5
        return images if detail is None else images + detail


def _wanted(quantised: Tensor, gradient: Tensor) -> Tensor:
    """Were there only the linear code, this would be the picture's own coefficients."""
    return quantised - 1.5 * gradient


def _zeros(width: int, values: int) -> nn.Linear:
    layer = nn.Linear(width, values)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
