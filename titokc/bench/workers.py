"""What a run does in several processes, with one thread each: searching for baselines' best files, and measuring.

Each function stands for itself, takes only what can be pickled, and reads pictures from files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from titokc.bench import images
from titokc.bench.contenders import open_contender
from titokc.bench.contenders.cache import best_files
from titokc.bench.contenders.interface import Found, Impossible
from titokc.errors import InputError
from titokc.imaging.shards import Source
from titokc.judge.table import Judge, Networks
from titokc.processes import processes


class Measuring(NamedTuple):
    """The metrics, and what their networks need."""

    metrics: tuple[str, ...]
    device: str
    weights: Path | None


class Searched(NamedTuple):
    """The best files by budget; why there is none, if the contender failed; why they could not be cached."""

    found: dict[int | None, Found | Impossible]
    failure: str | None = None
    problem: str | None = None


@contextmanager
def workers(jobs: int) -> Iterator[Executor]:
    """See `titokc.processes`; what is kept between jobs goes with them."""
    try:
        with processes(jobs) as pool:
            yield pool
    finally:
        for kept in (_judge, _pixels, _features):  # by a thread of this process: the next run may change the files
            kept.cache_clear()


def search(source: Source, crop: str, spec: str, budgets: Sequence[int | None], cache: Path) -> Searched:
    """The best files of a baseline for a picture. An unreadable picture is reported when it is measured."""
    contender = open_contender(spec)
    try:
        original = images.load(source, crop)
    except InputError:
        return Searched({})
    try:
        found, problem = best_files(contender, original, budgets, cache)
        return Searched(found, None, problem)
    except Exception as error:  # noqa: BLE001 - one contender's failure is no other's
        return Searched({}, failure(error))


def failure(error: Exception) -> str:
    """Why a contender has no file, in a line."""
    return f"it failed: {' '.join(str(error).split()) or type(error).__name__}"


def measure(measuring: Measuring, original: Path, made: Path) -> dict[str, Any]:
    """The metrics of a pair of pictures."""
    return _judge(measuring).picture(_pixels(original), _pixels(made))


def measure_set(measuring: Measuring, originals: tuple[Path, ...], made: tuple[Path, ...]) -> dict[str, Any]:
    """The metrics of two sets of pictures."""
    judge = _judge(measuring)
    return judge.sets(_features(judge, originals), judge.features(map(_pixels, made)))


@lru_cache(maxsize=1)
def _judge(measuring: Measuring) -> Judge:
    return Judge(measuring.metrics, Networks(measuring.device, measuring.weights))


@lru_cache(maxsize=2)
def _pixels(path: Path) -> np.ndarray:
    """The last two are kept: the original comes up again for each picture."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


@lru_cache(maxsize=1)
def _features(judge: Judge, paths: tuple[Path, ...]) -> dict[str, Any]:
    return judge.features(map(_pixels, paths))
