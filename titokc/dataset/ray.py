"""The shards of a job on a Ray cluster, by Ray Data: shards are its rows, an actor with the model does one at a time.

Pictures and tokens do not travel: each worker reads its shard and writes its file, in folders that all machines see.
So what Ray does again, after a worker or a machine was lost, only writes the same file again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from titokc.dataset.job import Job, Manifest, Worker
from titokc.dataset.sources import Shard
from titokc.errors import TitokcError


def run(job: Job, shards: Sequence[Shard], workers: int | None) -> Iterator[Manifest]:
    """As `titokc.dataset.local.run`, on the cluster of RAY_ADDRESS, or one of this machine alone.

    workers: by default one for each GPU with a CUDA device, else as many as the CPUs have threads for. Several may
    share a GPU.
    """
    if not shards:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing touches the network unasked
    import ray
    import ray.data

    ray.init(logging_level=logging.ERROR, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0)) if job.device.startswith("cuda") else 0
    threads = job.threads or 1
    job = replace(job, threads=threads)
    workers = min(workers or gpus or int(there["CPU"]) // threads or 1, len(shards))
    # Not `range`, whose tasks would wait for a CPU while the actors have all of them.
    done = ray.data.from_items(list(range(len(shards))), override_num_blocks=len(shards)).map_batches(
        _Actor,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        fn_constructor_args=(job, list(shards)),
        num_cpus=threads,
        num_gpus=1 / -(-workers // gpus) if gpus else 0,
    )
    try:
        for row in done.iter_rows():
            outcome = json.loads(row["outcome"])
            if isinstance(outcome, str):
                raise TitokcError(outcome)
            yield outcome
    finally:
        ray.shutdown()


class _Actor:
    def __init__(self, job: Job, shards: list[Shard]) -> None:
        self.shards, self.worker = shards, Worker(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """The number of a shard -> its manifest, or in words what concerns all of them, as JSON."""
        outcomes: list[Manifest | str] = []
        for number in batch["item"]:
            try:
                outcomes.append(self.worker(self.shards[number]))
            except TitokcError as error:
                outcomes.append(str(error))
        return {"outcome": [json.dumps(outcome) for outcome in outcomes]}
