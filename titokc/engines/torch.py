"""The engine of all models, CPUs and GPUs: batches, threads and precision around a `Tokenizer`."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from titokc.errors import UsageError
from titokc.models.interface import Distance, Tokenizer
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
    """The decoder's precision: as named, else bfloat16 where the processor or GPU multiplies in it, else float32, on
    older CUDA devices float16."""
    if name is None:
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        has_bfloat16 = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        return torch.bfloat16 if has_bfloat16 else torch.float32
    if name not in DTYPES:
        raise UsageError(f"dtype {name!r}: expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


class TorchEngine:
    """See `titokc.engines.base.Engine`.

    A matrix product rounds differently with other shapes and when threads share it, and a near tie between two tokens
    would fall the other way. So every product of `encode` has one shape and one thread: on a CPU its threads take
    single tiles side by side; other devices take `batch_size` tiles, the last batch filled up with black ones. `decode`
    does the same where there are as many tiles as threads; with fewer, on a CPU, all threads share the products of one
    tile after another, and samples may differ by 1 of 255 from those of another number of threads. `encode` shares them
    too with a tokenizer whose products do not depend on threads (`Tokenizer.shares_threads`).

    All of it happens in threads of the engine's own, so that concurrent callers share batches, and neither their
    settings of torch (threads, autocast, inference mode) matter here nor are they changed.
    """

    def __init__(self, tokenizer: Tokenizer, *, dtype: str | None, batch_size: int, threads: int | None) -> None:
        self.info = tokenizer.info
        self._tokenizer = tokenizer
        self._device = tokenizer.device
        self._dtype = find_dtype(dtype, self._device)
        self._threads = threads or torch.get_num_threads()
        on_cpu = self._device.type == "cpu"
        self._batch_size = 1 if on_cpu else batch_size
        self.width = self._threads if on_cpu else batch_size
        self._crew = _Crew(self._threads if on_cpu else 1, 1, self._batch_size)

    @cached_property
    def _distance(self) -> Distance:
        """What the natural look's search goes by; no judge that this project reports. MetricWeightsMissingError."""
        from titokc.judge.networks import EfficientNetDistance

        return EfficientNetDistance().to(self._device).to_images

    @cached_property
    def _one_by_one(self) -> _Crew:
        return _Crew(1, self._threads, 1)

    def encode(
        self, tiles: Sequence[np.ndarray], counts: Sequence[int], effort: int, tune: str = "psnr"
    ) -> list[np.ndarray]:
        if tune not in {"psnr", self.info.looks[-1]}:
            raise UsageError(f"tune {tune!r}: {self.info.name} has no such look")
        distance = None if tune == "psnr" or not effort else self._distance
        works = [(self._encode, count, effort, distance) for count in counts]
        return self._run_all(works, tiles, self._tokenizer.shares_threads)

    def decode(self, tokens: Sequence[np.ndarray], look: str) -> list[np.ndarray]:
        return self._run_all([(self._decode, look)] * len(tokens), tokens, True)

    def distortions(self, tiles: Sequence[np.ndarray], tokens: int) -> list[np.ndarray]:
        return [self._tokenizer.distortions(tile, tokens) for tile in tiles]

    def _run_all(self, works: Sequence[_Work], rows: Sequence[np.ndarray], may_share: bool) -> list[np.ndarray]:
        shared = may_share and self._device.type == "cpu" and len(rows) < self._threads
        return (self._one_by_one if shared else self._crew).run(works, rows)

    @torch.inference_mode()
    def _encode(self, tiles: np.ndarray, tokens: int, effort: int, distance: Distance | None) -> np.ndarray:
        pixels = np.zeros((self._batch_size, *tiles.shape[1:]), np.uint8)
        pixels[: len(tiles)] = tiles
        images = self._to_device(torch.from_numpy(pixels)).permute(0, 3, 1, 2).to(torch.float32).div(255)
        with full_precision(self._device):
            return self._tokenizer.encode(images, tokens, effort, distance)[: len(tiles)].cpu().numpy()

    @torch.inference_mode()
    def _decode(self, tokens: np.ndarray, look: str) -> np.ndarray:
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            images = self._tokenizer.decode(self._to_device(torch.from_numpy(tokens)), look)
        pixels = images.float().clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        if self._device.type == "cuda":
            pixels = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True).copy_(pixels)
        return pixels.cpu().numpy()

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)


# What is called with some rows, and its other arguments.
_Work = tuple[Any, ...]
# With the shape of a row: rows of one kind can share a batch.
_Kind = tuple[_Work, tuple[int, ...]]


class _Crew:
    """`workers` threads, each with `threads` of torch, which work on up to `batch` waiting rows of one kind, whoever
    brought them."""

    def __init__(self, workers: int, threads: int, batch: int) -> None:
        self._batch = batch
        self._waiting: deque[tuple[_Kind, np.ndarray, Future]] = deque()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(workers, "titokc", initializer=_use_threads, initargs=(threads,))
        # All of them begin now, so that nobody sees their setting of torch's threads later on.
        begun = threading.Barrier(workers + 1)
        for _ in range(workers):
            self._pool.submit(begun.wait)
        begun.wait()

    def run(self, works: Sequence[_Work], rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What is to be done, and with which row -> what came of it, in order. Rows that wait when an exception ends
        the call are dropped."""
        results: list[Future] = [Future() for _ in rows]
        with self._lock:
            self._waiting.extend(
                ((work, row.shape), row, result) for work, row, result in zip(works, rows, results, strict=True)
            )
        try:
            for _ in rows:
                self._pool.submit(self._take)
            return [result.result() for result in results]
        finally:
            for result in results:
                result.cancel()

    def _take(self) -> None:
        taken: list[tuple[_Kind, np.ndarray, Future]] = []
        with self._lock:
            while self._waiting and len(taken) < self._batch and (not taken or self._waiting[0][0] == taken[0][0]):
                one = self._waiting.popleft()
                if one[2].set_running_or_notify_cancel():
                    taken.append(one)
        if not taken:  # an earlier call took them along
            return
        try:
            (method, *options), _ = taken[0][0]
            done = method(np.stack([row for _, row, _ in taken]), *options)
        except BaseException as error:  # noqa: BLE001 - its callers raise it
            for _, _, result in taken:
                result.set_exception(error)
        else:
            for (_, _, result), row in zip(taken, done, strict=True):
                result.set_result(row)


_SETTING_THREADS = threading.Lock()


def _use_threads(number: int) -> None:
    """torch's number of threads for the calling thread, which has to be new. Setting it also sets what threads get that
    have not used torch yet: one of those sets that back."""
    with _SETTING_THREADS:
        usual = torch.get_num_threads()
        torch.set_num_threads(number)
        restorer = threading.Thread(target=torch.set_num_threads, args=(usual,))
        restorer.start()
        restorer.join()
