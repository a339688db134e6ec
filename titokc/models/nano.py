"""nano, the embedded tokenizer: a linear code that is good from the first step, and a ViT that learns what is missing.

    images -> thumbnail [B, 3, 64, 64] -> DCT -> lowest frequencies [B, C]
    frequencies -> residual vector quantiser, token by token -> indices [B, K]
    indices -> frequencies -> inverse DCT -> thumbnail -> + ViT decoder's correction -> images

The ViT ends in zeros, so an untrained nano is the linear code. Every token refines the few coefficients that are most
wrong after the tokens before it, so each prefix of a code is a code. Because sizes change by cutting or padding the
DCT, the same weights work at 64 pixels (pretraining) and at full size. Encoding takes no network at all.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titokc.models.blocks import full_precision
from titokc.models.interface import Reconstruction, Tokenizer

# Orthonormal and near the principal components of photographs: brightness, red - blue, green - magenta.
_OPPONENT = (
    (1 / math.sqrt(3), 1 / math.sqrt(3), 1 / math.sqrt(3)),
    (1 / math.sqrt(2), 0.0, -1 / math.sqrt(2)),
    (1 / math.sqrt(6), -2 / math.sqrt(6), 1 / math.sqrt(6)),
)
# Cosines that tell the decoder how many tokens there are.
_WAVES = 8


@dataclass(frozen=True)
class NanoConfig:
    """image_size: side of the pictures. thumb_size: side of what the ViT sees. band: the lowest band x band
    frequencies of each colour channel can be coded. token_size: coefficients that one token refines.
    num_tokens, min_tokens: the longest and the shortest code. width, heads, layers: of the ViT."""

    image_size: int = 256
    thumb_size: int = 64
    patch_size: int = 8
    band: int = 32
    num_tokens: int = 128
    min_tokens: int = 32
    codebook_size: int = 4096
    token_size: int = 8
    width: int = 256
    heads: int = 4
    layers: int = 6

    @property
    def patches(self) -> int:
        return (self.thumb_size // self.patch_size) ** 2

    @property
    def coefficients(self) -> int:
        return 3 * self.band**2


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


class Quantizer(nn.Module):
    """Residual vector quantisation in which token k refines only `coefficients[k]`, T of the C coefficients.

    The coefficients of a token are those with the largest variance left after the tokens before it (reverse
    water-filling with T at a time); its codebook is the k-means of what is left of them.
    """

    coefficients: Tensor

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        tokens, size = config.num_tokens, config.token_size
        self.total = config.coefficients
        self.codebooks = nn.Parameter(torch.zeros(tokens, size, config.codebook_size), requires_grad=False)
        self.register_buffer("coefficients", torch.zeros(tokens, size, dtype=torch.int32))

    def nearest(self, residual: Tensor, token: int) -> tuple[Tensor, Tensor]:
        """What is left of a token's coefficients [B, T] -> indices [B] of its nearest entries, and those [B, T]."""
        codebook = self.codebooks[token].detach()
        scores = torch.addmm(codebook.square().sum(0) / 2, residual, codebook, alpha=-1)
        # On the CPU NumPy's arg-min is five times faster than torch's, and this is what fitting spends its time on.
        indices = scores.argmin(1) if scores.is_cuda else torch.from_numpy(scores.cpu().numpy().argmin(1))
        indices = indices.to(codebook.device)
        return indices, codebook.T[indices]

    @torch.no_grad()
    def assign(self, coefficients: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [B, C] and the tokens to make of each, [B] -> indices [B, max(counts)] (0 beyond a row's count) and
        the quantised coefficients [B, C]."""
        with full_precision(coefficients.device):
            return self._assign(coefficients, counts)

    def _assign(self, coefficients: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        order = counts.argsort(descending=True, stable=True)
        residual, descending = coefficients[order], counts[order].cpu()
        indices = torch.zeros(len(order), int(descending[0]), dtype=torch.int64, device=residual.device)
        for token in range(indices.shape[1]):
            rows, chosen = int((descending > token).sum()), self.coefficients[token].long()
            found, entries = self.nearest(residual[:rows, chosen], token)
            indices[:rows, token] = found
            residual[:rows, chosen] -= entries
        back = order.argsort()
        return indices[back], coefficients - residual[back]

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices [B, k] -> coefficients [B, C]."""
        tokens = indices.shape[1]
        columns = indices.T[:, None, :].expand(-1, self.codebooks.shape[1], -1)
        entries = self.codebooks[:tokens].gather(2, columns)  # [k, T, B]
        places = self.coefficients[:tokens].long().flatten()
        return entries.new_zeros(len(indices), self.total).index_add_(1, places, entries.flatten(0, 1).T.contiguous())

    @torch.no_grad()
    def fit(self, samples: Tensor, rounds: int = 6) -> None:
        """Chooses coefficients and codebooks, greedily token by token, for samples [N, C]."""
        tokens, size = self.coefficients.shape
        variance = samples.square().mean(0)
        candidates = variance.argsort(descending=True)[: size * tokens]
        residual = samples[:, candidates].T.contiguous()  # [C', N]
        variance = variance[candidates]
        for token in range(tokens):
            chosen = variance.argsort(descending=True)[:size]
            points = residual[chosen].T.contiguous()
            self.coefficients[token] = candidates[chosen].to(torch.int32)
            self.codebooks[token] = points[torch.randperm(len(points))[: self.codebooks.shape[2]]].T
            for turn in range(rounds):
                # The early rounds only have to spread the entries: a quarter of the samples does.
                part = points if turn >= rounds - 2 else points[torch.randperm(len(points))[: len(points) // 4]]
                self._lloyd(part, token)
            for part in points.split(512):
                part -= self.nearest(part, token)[1]
            residual[chosen] = points.T
            variance[chosen] = points.square().mean(0)

    def _lloyd(self, points: Tensor, token: int) -> None:
        """One round of k-means on points [N, T]; entries that nothing is near to move to random points."""
        entries = self.codebooks.shape[2]
        indices = torch.cat([self.nearest(part, token)[0] for part in points.split(512)])
        sizes = torch.bincount(indices, minlength=entries)
        means = torch.zeros(entries, points.shape[1]).index_add_(0, indices, points) / sizes.clamp(min=1)[:, None]
        empty = sizes == 0
        means[empty] = points[torch.randint(len(points), (int(empty.sum()),))]
        self.codebooks[token] = means.T


class _Block(nn.Module):
    """A pre-norm transformer block [B, P, D] -> [B, P, D] whose parts are chosen for training speed on a CPU: written
    out attention, and squared ReLU (Primer, arXiv 2109.08668). It starts as the identity."""

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
        values = 3 * config.patch_size**2
        self.embed = nn.Linear(values, config.width)
        self.position = nn.Parameter(torch.randn(config.patches, config.width) * 0.02)
        self.blocks = nn.Sequential(*(_Block(config.width, config.heads) for _ in range(config.layers)))
        self.norm = nn.LayerNorm(config.width)
        self.count_embed = nn.Linear(_WAVES, config.width)
        self.detail_size = config.patch_size * config.image_size // config.thumb_size
        self.to_thumb = _zeros(config.width, values)
        self.to_detail = _zeros(config.width, 3 * self.detail_size**2)

    def forward(self, thumbs: Tensor, known: Tensor, detail: bool) -> tuple[Tensor, Tensor | None]:
        """Thumbnails [B, 3, S, S] and the part of all tokens that they are made of, [B] in (0, 1] -> corrections
        [B, 3, S, S] and, if `detail`, [B, 3, image_size, image_size]."""
        patches = F.pixel_unshuffle(thumbs, self.patch_size).flatten(2).transpose(1, 2)
        waves = torch.cos(math.pi * known[:, None] * torch.arange(_WAVES, device=known.device))
        x = self.embed(4 * patches) + self.count_embed(waves)[:, None]
        x = self.norm(self.blocks(x + self.position.to(x.dtype)))
        fine = _to_pixels(self.to_detail(x), self.detail_size).float() if detail else None
        return _to_pixels(self.to_thumb(x), self.patch_size).float(), fine


class NanoTokenizer(Tokenizer):
    """The tokenizer described at the top of this file."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        self.codebook_size = config.codebook_size
        self.min_tokens, self.max_tokens = config.min_tokens, config.num_tokens
        self.nested = True
        self.quantizer = Quantizer(config)
        self.decoder = Decoder(config)
        self.register_buffer("opponent", torch.tensor(_OPPONENT), persistent=False)
        self.register_buffer("dct", dct_matrix(config.thumb_size, config.band), persistent=False)

    opponent: Tensor
    dct: Tensor

    @torch.no_grad()
    def encode(self, images: Tensor, tokens: int | None = None) -> Tensor:
        """See `Tokenizer.encode`. UsageError for a number of tokens that the model does not make."""
        counts = torch.full((len(images),), self.token_count(tokens), device=images.device)
        return self.quantizer.assign(self._analyse(images), counts)[0]

    def decode(self, indices: Tensor) -> Tensor:
        """See `Tokenizer.decode`. Runs under the caller's autocast, but for the linear part."""
        self.check_indices(indices)
        counts = torch.full((len(indices),), indices.shape[1], device=indices.device)
        return self._synthesise(self.quantizer.lookup(indices), counts, self.image_size)

    def forward(self, images: Tensor, tokens: int | Tensor | None = None) -> Reconstruction:
        """See `Tokenizer.forward`; images [B, 3, S, S] with S = image_size or thumb_size, reconstructed at that size.

        Only the decoder has gradients."""
        if not isinstance(tokens, Tensor):
            tokens = torch.full((len(images),), tokens or self.max_tokens, device=images.device)
        indices, coefficients = self.quantizer.assign(self._analyse(images), tokens)
        made = self._synthesise(coefficients, tokens, images.shape[-1])
        return Reconstruction(made, indices, made.new_zeros(()))

    @torch.no_grad()
    def initialise(self, batches: Iterator[Tensor]) -> None:
        """Fits the quantiser to the training images [B, 3, S, S] of `batches`: 32 of them for each entry."""
        samples: list[Tensor] = []
        while sum(map(len, samples)) < 32 * self.codebook_size:
            samples.append(self._analyse(next(batches)).cpu())
        device = self.device
        self.quantizer.cpu().fit(torch.cat(samples))
        self.quantizer.to(device)

    @torch.no_grad()
    def _analyse(self, images: Tensor) -> Tensor:
        """RGB [B, 3, S, S] -> float32 coefficients [B, C], in units of pixel values."""
        with full_precision(images.device):
            thumbs = resize(images.float() - 0.5, self.config.thumb_size)
            opponent = torch.einsum("dc,bchw->bdhw", self.opponent, thumbs)
            return (self.dct @ opponent @ self.dct.T).flatten(1) / self.config.thumb_size

    def _synthesise(self, coefficients: Tensor, counts: Tensor, size: int) -> Tensor:
        """Coefficients [B, C], of which the first tokens [B] are known -> float32 RGB [B, 3, size, size]."""
        band, side = self.config.band, self.config.thumb_size
        with full_precision(coefficients.device):
            opponent = self.dct.T @ coefficients.unflatten(1, (3, band, band)) @ self.dct * side
            thumbs = torch.einsum("dc,bdhw->bchw", self.opponent, opponent)
        correction, detail = self.decoder(thumbs, counts / self.max_tokens, detail=size != side)
        with full_precision(coefficients.device):
            images = resize(thumbs + correction, size) + 0.5
        return images if detail is None else images + detail


def _zeros(width: int, values: int) -> nn.Linear:
    layer = nn.Linear(width, values)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _to_pixels(values: Tensor, patch: int) -> Tensor:
    """[B, P, 3 * patch^2] -> [B, 3, S, S], corrections in tenths."""
    grid = math.isqrt(values.shape[1])
    return F.pixel_shuffle(values.transpose(1, 2).unflatten(2, (grid, grid)), patch) * 0.1
