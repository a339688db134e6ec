"""Batches made by threads ahead of their use; `titokc.train.augment` says what is in them."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from titokc.train.augment import Batch, Sampler
from titokc.train.data import ImageSet
from titokc.train.distributed import Group
from titokc.train.recipes.schema import View


class Feed:
    """Serves this process's part of each batch. workers: threads; enter: with the samplers of a phase's views.

    device: the training's. A GPU makes its crops itself, in a stream of their own; others get them from Pillow, on the
    host."""

    def __init__(self, workers: int, group: Group, device: torch.device) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
        self._device = device if device.type == "cuda" else None
        self._stream = torch.cuda.Stream(device) if self._device else None
        self._workers, self._group = workers, group
        self._samplers: Sequence[Sampler] = ()
        self._ahead: tuple[tuple[int, int], list[Future[Batch]]] | None = None

    def sampler(self, images: ImageSet, view: View, seed: tuple[int, ...]) -> Sampler:
        return Sampler(images, view, seed, self._device)

    def enter(self, samplers: Sequence[Sampler]) -> None:
        self._samplers, self._ahead = samplers, None

    def prepare(self, view: int, position: int) -> list[Future[Batch]]:
        """Begins with the batch of a view that starts at this position, in slices, unless it is under way already."""
        if self._ahead is None or self._ahead[0] != (view, position):
            sampler = self._samplers[view]
            size = sampler.view.batch_size // self._group.size
            begin = position + self._group.rank * size
            slices = min(self._workers, size)
            edges = [begin + size * i // slices for i in range(slices + 1)]
            futures = [self._pool.submit(self._batch, sampler, a, b - a) for a, b in itertools.pairwise(edges)]
            self._ahead = ((view, position), futures)
        return self._ahead[1]

    def take(self, view: int, position: int) -> Batch:
        return Batch.joined([self._received(future.result()) for future in self.prepare(view, position)])

    def all_of(self, sampler: Sampler) -> Iterator[Batch]:
        """The whole batches of a sampler from the first on, without end."""
        size = sampler.view.batch_size
        starts = itertools.count(0, size)
        first = itertools.islice(starts, self._workers)
        ahead = deque(self._pool.submit(self._batch, sampler, at, size) for at in first)
        for start in starts:
            yield self._received(ahead.popleft().result())
            ahead.append(self._pool.submit(self._batch, sampler, start, size))

    def _batch(self, sampler: Sampler, position: int, count: int) -> Batch:
        with torch.cuda.stream(self._stream):  # does nothing where there is none
            batch = sampler.batch(position, count)
        if self._stream is not None:
            self._stream.synchronize()
        return batch

    def _received(self, batch: Batch) -> Batch:
        """From a thread: its memory may be given to others only after what the training's stream does with it."""
        for tensor in batch if self._stream is not None else ():
            if tensor.is_cuda:
                tensor.record_stream(torch.cuda.current_stream())
        return batch

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
