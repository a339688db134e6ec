"""The validation set, and what objectives measure on it with the averaged weights."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from titokc import imaging
from titokc.judge.pixels import psnr, ssim
from titokc.models.interface import Tokenizer
from titokc.train.data import ImageSet
from titokc.train.distributed import Group


def token_counts(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The counts that reports show: the longest code, and for a nested one four evenly spaced down to the shortest."""
    least, most = tokenizer.info.min_tokens, tokenizer.info.max_tokens
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
    loaded = (Image.fromarray(images.load(int(at))) for at in chosen)
    squares = np.stack([np.asarray(imaging.centre_square(image, side)) for image in loaded])
    return torch.from_numpy(squares).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def validate(
    tokenizer: Tokenizer,
    squares: Tensor,
    error: Callable[[Tensor, Tensor], Tensor | float],
    group: Group,
    batch_size: int = 16,
) -> tuple[dict[str, float], Tensor]:
    """Means over the pictures uint8 [N, 3, S, S], shared out among the processes, and a grid to look at.

    "loss" (`error` of reconstructions and images, the mean over the token counts), "psnr/K", "ssim/K", "usage" (part of
    the V indices that occur, whatever the token) and "perplexity". The grid, uint8 [3, H, W], has originals
    over reconstructions from few tokens to many.
    """
    counts = token_counts(tokenizer)
    mine = squares[group.rank :: group.size]
    sums = {f"{name}/{count}": 0.0 for name in ("psnr", "ssim") for count in counts} | {"loss": 0.0}
    histogram = torch.zeros(tokenizer.info.codebook_size, dtype=torch.int64, device=tokenizer.device)
    grid = squares.new_zeros(3, 0, 0)
    for start in range(0, len(mine), batch_size):
        originals = mine[start : start + batch_size]
        images = originals.to(tokenizer.device).float() / 255
        rows = [originals[:4]]
        for count in counts:
            made = tokenizer.reconstruct(images, torch.full((len(images),), count))
            sums["loss"] += len(images) * float(error(made.images, images)) / len(counts)
            for original, picture in zip(arrays(originals), arrays(to_bytes(made.images)), strict=True):
                sums[f"psnr/{count}"] += psnr(original, picture)
                sums[f"ssim/{count}"] += ssim(original, picture) or 0.0
            rows.append(to_bytes(made.images[:4]).cpu())
        histogram += torch.bincount(made.indices.flatten(), minlength=tokenizer.info.codebook_size)
        if start == 0:
            grid = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
    if group.size > 1:
        dist.all_reduce(histogram)
    means = {name: value / len(squares) for name, value in group.sum(sums, tokenizer.device).items()}
    shares = histogram / histogram.sum()
    means["usage"] = float((histogram > 0).float().mean())
    means["perplexity"] = float(torch.special.entr(shares).sum().exp())
    return means, grid


def described(tokenizer: Tokenizer, found: Mapping[str, float]) -> str:
    """What the numbers of a validation say, for a person; of those of `validate`, if they are among them."""
    counts = [count for count in token_counts(tokenizer) if f"psnr/{count}" in found]
    said = ["dB by tokens " + " ".join(f"{count}:{found[f'psnr/{count}']:.2f}" for count in counts)] if counts else []
    if "usage" in found:
        said.append(f"codebook {found['usage']:.0%} used, perplexity {found['perplexity']:.0f}")
    return ", ".join(said) or f"loss {found['loss']:.4g}"


def to_bytes(images: Tensor) -> Tensor:
    """In [0, 1], clamped to it -> uint8."""
    return (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)


def arrays(pictures: Tensor) -> np.ndarray:
    """uint8 [B, 3, S, S] -> [B, S, S, 3]."""
    return pictures.permute(0, 2, 3, 1).cpu().numpy()
