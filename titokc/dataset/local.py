"""The shards of a job on this machine: one after another, or in several processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import lru_cache

from titokc.dataset.job import Job, Manifest, Worker
from titokc.dataset.sources import Shard
from titokc.errors import TitokcError
from titokc.processes import processes

_worker = lru_cache(maxsize=1)(Worker)


def run(job: Job, shards: Sequence[Shard], workers: int | None) -> Iterator[Manifest]:
    """The manifests, in the order in which the shards are done; see `Worker`. workers: by default 1, on all CPUs."""
    workers = min(workers or 1, len(shards))
    if workers <= 1:
        yield from map(Worker(job), shards)
        return
    job = replace(job, threads=job.threads or max(1, (os.cpu_count() or 1) // workers))
    with processes(workers) as pool:
        try:
            for done in as_completed([pool.submit(_tokenize, job, shard) for shard in shards]):
                yield done.result()
        except BrokenProcessPool:
            raise TitokcError(
                "a worker was killed, perhaps for want of memory: the same command goes on where it was"
            ) from None


def _tokenize(job: Job, shard: Shard) -> Manifest:
    return _worker(job)(shard)
