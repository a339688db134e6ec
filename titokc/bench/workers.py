"""What a run does in several processes, with one thread each: searching for baselines' best files, and measuring.

Each function stands for itself, takes only what can be pickled, and reads pictures from files.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from titokc.bench import images
from titokc.bench.codecs import open_codec
from titokc.bench.interface import Format, Placeholder
from titokc.bench.search import Cache
from titokc.errors import InputError
from titokc.judge.table import Judge, Networks

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def workers(jobs: int) -> Iterator[Executor]:
    """`jobs` processes; for one job, a thread of this process."""
    before = {name: os.environ.get(name) for name in _THREADS}
    pool: Executor
    if jobs == 1:
        pool = ThreadPoolExecutor(1)
    else:
        pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_die_of_interrupt)
        os.environ.update(dict.fromkeys(_THREADS, "1"))  # read when a process starts
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        for kept in (_judge, _opened, _features):  # by a thread of this process: the next run may change the files
            kept.cache_clear()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _die_of_interrupt() -> None:
    """Ctrl-C reaches the whole group: a worker ends at once and says nothing, the parent reports."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def search(path: Path, crop: str, spec: str, budgets: Sequence[int], cache: Path) -> None:
    """Fills the cache for a baseline and a picture. An unreadable picture is reported when it is measured."""
    codec = open_codec(spec)
    assert isinstance(codec, Format | Placeholder)
    try:
        original = images.load(path, crop)
    except InputError:
        return
    Cache(cache).best_files(codec, original, budgets)
    if isinstance(codec, Format):
        Cache(cache).floor_file(codec, original)


def measure(metrics: tuple[str, ...], device: str, weights: Path | None, original: Path, made: Path) -> dict[str, Any]:
    """The metrics of a pair of pictures."""
    return _judge(metrics, device, weights).picture(_opened(original), _pixels(made))


def measure_set(
    metrics: tuple[str, ...], device: str, weights: Path | None, originals: tuple[Path, ...], made: tuple[Path, ...]
) -> dict[str, Any]:
    """The metrics of two sets of pictures."""
    judge = _judge(metrics, device, weights)
    return judge.sets(_features(judge, originals), judge.features(map(_pixels, made)))


@lru_cache(maxsize=1)
def _judge(metrics: tuple[str, ...], device: str, weights: Path | None) -> Judge:
    return Judge(metrics, Networks(device, weights))


@lru_cache(maxsize=1)
def _opened(path: Path) -> np.ndarray:
    """The original, which comes up again for each picture."""
    return _pixels(path)


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


@lru_cache(maxsize=1)
def _features(judge: Judge, paths: tuple[Path, ...]) -> dict[str, Any]:
    return judge.features(map(_pixels, paths))
