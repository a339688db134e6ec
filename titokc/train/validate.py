"""The validation set, and what the loop measures on it with the averaged weights."""

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from titokc.models.interface import Tokenizer
from titokc.train import losses
from titokc.train.augment import centre_square
from titokc.train.data import ImageSet
from titokc.train.recipes import Losses


def token_counts(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The counts that reports show: the longest code, and for a nested one four evenly spaced down to the shortest."""
    least, most = tokenizer.min_tokens, tokenizer.max_tokens
    return tuple(sorted({least + round((most - least) * i / 3) for i in range(4)}))


def pictures(images: ImageSet, side: int, most: int) -> Tensor:
    """Up to `most` centre squares, evenly chosen among the images of at least `side` pixels: uint8 [N, 3, side, side].

    For small sides the images nearest in size are taken, so that 64-pixel validation does not see shrunk photographs.
    """
    short = images.sizes.min(1)
    usable = np.flatnonzero((short >= side) & (short < 2 * side))
    if len(usable) == 0:
        usable = np.flatnonzero(short >= side)
    if len(usable) == 0:
        usable = np.arange(len(images))
    chosen = usable[np.linspace(0, len(usable) - 1, min(most, len(usable))).round().astype(int)]
    squares = np.stack([centre_square(images.load(int(at)), side) for at in chosen])
    return torch.from_numpy(squares).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def validate(
    tokenizer: Tokenizer,
    squares: Tensor,
    weights: Losses,
    casting: AbstractContextManager[Any],
    batch_size: int = 16,
) -> tuple[dict[str, float], Tensor]:
    """Means over the pictures uint8 [N, 3, S, S]: "loss" (pixel terms, mean over the token counts), "psnr/K", "ssim/K",
    "usage" (part of the codebook in use) and "perplexity"; and a grid of originals over reconstructions, uint8
    [3, H, W].
    """
    counts = token_counts(tokenizer)
    sums: dict[str, float] = {}
    histogram = torch.zeros(tokenizer.codebook_size, dtype=torch.int64)
    rows = []
    for start in range(0, len(squares), batch_size):
        images = squares[start : start + batch_size].to(tokenizer.device).float() / 255
        share = len(images) / len(squares)
        row = [images[:4]]
        for count in counts:
            with casting:
                made = tokenizer(images, count)
            terms = losses.reconstruction_terms(weights, made, images)
            found = {"loss": float(sum(terms.values())) / len(counts)}
            found[f"psnr/{count}"] = float(losses.psnr(made.images, images).mean())
            found[f"ssim/{count}"] = float(losses.ssim(made.images, images).mean())
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + share * value
            row.append(made.images[:4].clamp(0, 1))
        histogram += torch.bincount(made.indices.flatten().cpu(), minlength=tokenizer.codebook_size)
        if start == 0:
            rows = row
    p = histogram / histogram.sum()
    sums["usage"] = float((histogram > 0).float().mean())
    sums["perplexity"] = float(torch.special.entr(p).sum().exp())
    grid = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
    return sums, (grid * 255).round().to(torch.uint8).cpu()
