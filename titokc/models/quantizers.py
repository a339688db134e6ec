"""Quantisers, latents [B, K, T] <-> indices [B, K], in float32; `titokc.models.titok` puts a ViT on either side.

T is the token dimension, V the codebook size. A quantiser's `forward` is the training pass: it passes gradients
straight through to the latents. `titokc.train.revival` keeps a learned codebook in use while it trains.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantized(NamedTuple):
    """vectors: float32 [B, K, T], equal to `lookup(indices)`. indices: int64 [B, K]. loss: float32 scalar."""

    vectors: Tensor
    indices: Tensor
    loss: Tensor


class VectorQuantizer(nn.Module):
    """The nearest entry of a learned codebook (VQ-VAE, arXiv 1711.00937).

    l2_norm: latents and entries are compared, and decoded, as unit vectors (ViT-VQGAN, arXiv 2110.04627).
    commitment: weight of the term that pulls latents to their entries, beside the one that pulls entries to latents.
    """

    def __init__(self, codebook_size: int, token_size: int, l2_norm: bool, commitment: float = 0.25) -> None:
        super().__init__()
        self.l2_norm = l2_norm
        self.commitment = commitment
        self.embedding = nn.Embedding(codebook_size, token_size)
        if l2_norm:
            with torch.no_grad():
                self.embedding.weight.copy_(F.normalize(self.embedding.weight, dim=-1))
        else:
            nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)

    def distances(self, latents: Tensor) -> Tensor:
        """Squared distances [N, V] of latents [N, T] to every entry."""
        with torch.autocast(latents.device.type, enabled=False):
            latents, entries = self._normed(latents.float()), self._normed(self.embedding.weight.float())
            # |z|^2 decides nothing, but its rounding does: the released tokens come from this sum, in this order.
            squares = latents.square().sum(1, keepdim=True) + entries.square().sum(1)
            return squares - 2 * (latents @ entries.T)

    def assign(self, latents: Tensor) -> Tensor:
        """Latents [..., T] -> indices [...] of the nearest entries."""
        return self.distances(latents.flatten(0, -2)).argmin(1).view(latents.shape[:-1])

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices [...] -> float32 vectors [..., T]."""
        with torch.autocast(indices.device.type, enabled=False):
            return self._normed(self.embedding(indices).float())

    def forward(self, latents: Tensor, keep: Tensor | None = None) -> Quantized:
        """Latents [B, K, T]; keep: bool [B, K], the tokens that count in the loss (None: all)."""
        with torch.autocast(latents.device.type, enabled=False):
            indices = self.assign(latents.detach())
            vectors, latents = self.lookup(indices), self._normed(latents.float())
            errors = (vectors - latents.detach()).square() + self.commitment * (vectors.detach() - latents).square()
            each = errors.mean(2)
            # Every image counts the same, so that the loss of a batch is the mean over its parts.
            loss = each.mean() if keep is None else ((each * keep).sum(1) / keep.sum(1)).mean()
            return Quantized(latents + (vectors - latents).detach(), indices, loss)

    def _normed(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.l2_norm else vectors


class FiniteScalarQuantizer(nn.Module):
    """Rounds each of T dimensions to its own few levels (FSQ, arXiv 2309.15505): no codebook, no loss.

    levels: (l_1 ... l_T), V = their product. The index counts through the levels, the first dimension fastest.
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float32), persistent=False)
        self.register_buffer("halves", self.levels // 2, persistent=False)
        strides = torch.tensor([math.prod(levels[:at]) for at in range(len(levels))])
        self.register_buffer("strides", strides, persistent=False)

    levels: Tensor
    halves: Tensor
    strides: Tensor

    def assign(self, latents: Tensor) -> Tensor:
        """Latents [..., T] -> indices [...]."""
        with torch.autocast(latents.device.type, enabled=False):
            digits = (self._bounded(latents.float()).round() + self.halves).long()
            return (digits * self.strides).sum(-1)

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices [...] -> float32 vectors [..., T] in [-1, 1]."""
        digits = indices[..., None] // self.strides % self.levels.long()
        return (digits - self.halves) / self.halves

    def forward(self, latents: Tensor, keep: Tensor | None = None) -> Quantized:  # noqa: ARG002
        """Latents [B, K, T]; there is no loss, so `keep` changes nothing."""
        with torch.autocast(latents.device.type, enabled=False):
            indices = self.assign(latents.detach())
            soft = self._bounded(latents.float()) / self.halves
            vectors = soft + (self.lookup(indices) - soft).detach()
            return Quantized(vectors, indices, soft.new_zeros(()))

    def _bounded(self, latents: Tensor) -> Tensor:
        """Latents squeezed so that rounding gives exactly the levels -(l // 2) .. (l - 1) // 2."""
        reach = (self.levels - 1) * (1 + 1e-3) / 2
        offset = (1 - self.levels % 2) / 2
        return torch.tanh(latents + torch.atanh(offset / reach)) * reach - offset
