"""Many conversions side by side, their results in order; and one's way through an engine, for `titokc.codec`."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

from titokc.errors import TitokcError

# The most pictures that are under way at the same time, on however many processors.
MOST_AT_ONCE = 64


class Work:
    """What is done of a picture, for a progress bar; and whether anybody still wants it."""

    def __init__(self, progress: Callable[[int, int], object] | None, stopped: threading.Event | None = None) -> None:
        self._progress, self._stopped = progress, stopped
        self._done = self._total = self._foreseen = 0

    def foresee(self, tiles: int) -> None:
        """So many that are to be expected later."""
        self._total += tiles
        self._foreseen += tiles

    def expect(self, tiles: int) -> None:
        foreseen = min(tiles, self._foreseen)
        self._foreseen -= foreseen
        self._total += tiles - foreseen

    def through(
        self, run: Callable[[list[Any]], Iterable[Any]], rows: Iterable[Any], width: int, counted: bool = True
    ) -> Iterator[Any]:
        """The engine's answer to each of the rows, which are asked for `width` at a time. counted: as progress."""
        rest = iter(rows)
        while group := list(islice(rest, width)):
            if self._stopped is not None and self._stopped.is_set():
                raise CancelledError
            yield from run(group)
            self._done += len(group) * counted
            if self._progress is not None and counted:
                self._progress(self._done, max(self._done, self._total))


def in_order(
    convert: Callable[[Any, Work], Any],
    sources: Iterable[Any],
    width: Callable[[], int],
    progress: Callable[[int, int], object] | None,
    return_errors: bool,
) -> Iterator[Any]:
    """What `convert` makes of each source, in order, so that reading, coding and what the caller does with the results
    overlap; at most `width()` are under way or wait to be taken.

    return_errors: yield a source's TitokcError in its place instead of raising it, unless it concerns all.
    """
    stopped = threading.Event()
    pending: deque[Future] = deque()

    def result() -> Any:
        try:
            return pending.popleft().result()
        except TitokcError as error:
            if return_errors and not error.concerns_all:
                return error
            raise

    pool = ThreadPoolExecutor(MOST_AT_ONCE, "titokc codec")
    try:
        for source in sources:
            pending.append(pool.submit(convert, source, Work(progress, stopped)))
            while len(pending) >= min(width(), MOST_AT_ONCE):
                yield result()
        while pending:
            yield result()
    finally:
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)
