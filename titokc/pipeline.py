"""Many sources, one model, results in order: inputs of all jobs go through together, for `titokc.codec`."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from titokc.errors import TitokcError


@dataclass
class Job:
    """One source's way through the model.

    key: inputs of jobs with equal keys can share a batch. count: how many `inputs` there are; they are made when they
    are needed. collect: what is kept of an output and its number. finish: the outputs -> the result.
    """

    key: Hashable
    count: int
    inputs: Iterable[Any]
    finish: Callable[[list[Any]], Any]
    collect: Callable[[Any, int], Any] = lambda output, _: output
    outputs: list[Any] = field(default_factory=list)


def run(
    sources: Iterable[Any],
    read: Callable[[Any], Any],
    check: Callable[[], None],
    start: Callable[[Any], Job],
    model: Callable[[Any, list[Any]], list[Any]],
    batch_size: int,
    return_errors: bool,
) -> Iterator[Any]:
    """Reads each source, starts a job with what was read, calls `model(key, inputs)` with up to `batch_size` inputs.

    A TitokcError of `read` or `start` is the source's own: yielded in its place if `return_errors`. `check` is called
    once a source could be read, and raises what concerns all of them.
    """
    jobs: deque[Job | TitokcError] = deque()
    waiting: list[tuple[Job, Any]] = []

    def attempt(step: Callable[[Any], Any], source: Any) -> Any:
        try:
            return step(source)
        except TitokcError as error:
            if return_errors:
                return error
            raise

    def flush() -> None:
        if waiting:
            outputs = model(waiting[0][0].key, [item for _, item in waiting])
            for (job, _), output in zip(waiting, outputs, strict=True):
                job.outputs.append(job.collect(output, len(job.outputs)))
            waiting.clear()

    for source in sources:
        job = attempt(read, source)
        if not isinstance(job, TitokcError):
            check()
            job = attempt(start, job)
        jobs.append(job)
        for item in () if isinstance(job, TitokcError) else job.inputs:
            if waiting and waiting[0][0].key != job.key:
                flush()
            waiting.append((job, item))
            if len(waiting) == batch_size:
                flush()
        while jobs and _is_done(jobs[0]):
            yield _result(jobs.popleft())
    flush()
    while jobs:
        yield _result(jobs.popleft())


def _is_done(job: Job | TitokcError) -> bool:
    return isinstance(job, TitokcError) or len(job.outputs) == job.count


def _result(job: Job | TitokcError) -> Any:
    return job if isinstance(job, TitokcError) else job.finish(job.outputs)
