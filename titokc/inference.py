"""Square RGB tiles <-> token indices through a `Tokenizer`: batches, precision and transfers, for `titokc.codec`."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from titokc.errors import UsageError
from titokc.models.interface import Tokenizer
from titokc.models.precision import full_precision

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_device(name: str) -> torch.device:
    """ "auto" (CUDA, MPS or CPU, the first there is), "cpu", "cuda", "cuda:1" or "mps"; UsageError if absent."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = name.partition(":")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(kind)
    if there is None or not (number.isdecimal() or name == kind):
        raise UsageError(f"device {name!r}: expected one of {', '.join(DEVICES)}")
    if int(number or 0) >= there:
        raise UsageError(f"device {name}: torch finds {there} of this kind")
    return torch.device(name)


def find_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The decoder's precision: as named, else float32, on CUDA bfloat16 or (before Ampere) float16."""
    if name is None:
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if name not in DTYPES:
        raise UsageError(f"dtype {name!r}: expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def encode_tiles(
    tokenizer: Tokenizer, tiles: Sequence[Image.Image], tokens: int, effort: int, batch_size: int
) -> list[list[int]]:
    """RGB tiles of S x S pixels -> `tokens` indices for each, whatever is encoded together and on how many threads.

    effort: see `Tokenizer.encode`.

    A matrix product rounds differently with other shapes and when threads share it, and a near tie between two indices
    would fall the other way. So every product has one shape and one thread: the CPU's threads take single tiles side by
    side; other devices take `batch_size` tiles, the last batch filled up with black ones.
    """
    if tokenizer.device.type == "cpu":
        threads = torch.get_num_threads()
        try:
            with (
                full_precision(tokenizer.device),
                ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
            ):
                found = pool.map(lambda tile: _encode_batch(tokenizer, [tile], tokens, effort, 1), tiles)
                return [codes[0] for codes in found]
        finally:
            torch.set_num_threads(threads)
    codes: list[list[int]] = []
    for start in range(0, len(tiles), batch_size):
        codes += _encode_batch(tokenizer, tiles[start : start + batch_size], tokens, effort, batch_size)
    return codes


@torch.inference_mode()
def decode_codes(tokenizer: Tokenizer, codes: Sequence[Sequence[int]], dtype: torch.dtype) -> list[Image.Image]:
    """Indices (as many for each tile) -> RGB tiles of S x S pixels, clamped and rounded to 8 bits."""
    device = tokenizer.device
    indices = _to_device(torch.tensor(codes, dtype=torch.int64), device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        images = tokenizer.decode(indices)
    pixels = images.float().clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    if device.type == "cuda":
        pixels = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True).copy_(pixels)
    return [Image.fromarray(tile) for tile in pixels.cpu().numpy()]


@torch.inference_mode()
def _encode_batch(
    tokenizer: Tokenizer, tiles: Sequence[Image.Image], tokens: int, effort: int, size: int
) -> list[list[int]]:
    pixels = np.zeros((size, tokenizer.side, tokenizer.side, 3), np.uint8)
    for row, tile in enumerate(tiles):
        pixels[row] = np.asarray(tile)
    images = _to_device(torch.from_numpy(pixels), tokenizer.device).permute(0, 3, 1, 2).float().div(255)
    return tokenizer.encode(images, tokens, effort)[: len(tiles)].cpu().tolist()


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
