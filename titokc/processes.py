"""Processes that work for this one, with one thread for each product of matrices."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def processes(count: int) -> Iterator[Executor]:
    """So many processes, which end when this one does, however that ends; for one, a thread of this process."""
    before = {name: os.environ.get(name) for name in _THREADS}
    pool: Executor
    if count == 1:
        pool = ThreadPoolExecutor(1)
    else:
        pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=begin)
        os.environ.update(dict.fromkeys(_THREADS, "1"))  # read when a process starts
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def begin() -> None:
    """Ctrl-C reaches the whole group: a worker ends at once and says nothing, the parent reports. Killed, it cannot."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
