"""What every runner does: one shard of pictures -> one file of tokens and its manifest.

OUT/NAME.parquet             the tokens of the shard NAME
OUT/_manifest/NAME.json      written after it: the shard is done; its source, its pictures, those that failed and why
OUT/_titokc.json             what all of them were made with; a run that would mix in other tokens is refused
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from titokc.codec import DEFAULT_MODEL, Codec
from titokc.dataset.sinks import FORMATS
from titokc.dataset.sources import Shard, check_key, pictures
from titokc.errors import InputError, ModelMismatchError, OutputError, TitokcError
from titokc.files import reason, write_atomic
from titokc.limits import Limits
from titokc.options import Encoded
from titokc.weights.places import locate

SETTINGS = "_titokc.json"
MANIFESTS = "_manifest"

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What is asked of all shards, in a form that other processes and machines take.

    weights: the fingerprint of the model, in hex, which it must have there too. device, batch_size, threads: see
    `titokc.Codec`.
    """

    output: Path
    format: str
    model: str
    weights: str
    tokens: int
    effort: int
    limits: Limits
    device: str
    batch_size: int
    threads: int | None

    def manifest(self, shard: Shard) -> Path:
        return self.output / MANIFESTS / f"{shard.name}.json"


def prepare(output: Path, *, model: str | None, tokens: int | None, **options: Any) -> Job:
    """The job, once the model is known and `output` is found to be new or that of a run of the same tokens. options:
    the other fields of `Job`. Raises TitokcError."""
    name = locate(model or DEFAULT_MODEL).name  # of a path, the absolute one
    info = Codec(name, device="cpu", threads=1).info
    job = Job(output.absolute(), model=name, weights=info.weights.hex(), tokens=info.check_tokens(tokens), **options)
    deciding: dict[str, Any] = {"code": info.code.hex(), "weights": job.weights, "format": job.format}
    _claim(job.output, deciding | {"tokens": job.tokens, "effort": job.effort, **asdict(job.limits)})
    return job


def _claim(output: Path, settings: dict[str, Any]) -> None:
    """Notes in a new folder what decides its tokens, and which pictures are refused. Raises OutputError for another."""
    path = output / SETTINGS
    try:
        if not path.exists():
            if output.is_dir() and any(output.iterdir()):
                raise OutputError(f"{output} has other files: choose a new folder")
            try:
                write_atomic(path, json.dumps(settings, indent=1).encode(), overwrite=False)
            except OutputError:  # another machine of this run may have been first
                if not path.exists():
                    raise
        found = dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        detail = reason(error) if isinstance(error, OSError) else error
        raise OutputError(f"{path} cannot be used: {detail}") from error
    for name, value in settings.items():
        if found.get(name) != value:
            raise OutputError(f"{output} has {name} {found.get(name)}, not {value}: choose another folder")


def pending(job: Job, shards: Sequence[Shard]) -> tuple[list[Shard], list[Manifest]]:
    """The shards that are still to be done, and the manifests of the others. Raises OutputError for one that was done
    of other pictures."""
    waiting: list[Shard] = []
    done: list[Manifest] = []
    for shard in shards:
        try:
            manifest = json.loads(job.manifest(shard).read_bytes())
            written = (job.output / manifest["output"]).stat().st_size == manifest["bytes"]
            written &= manifest["pictures"] + len(manifest["failed"]) >= 0
            state = manifest["state"]
        except (OSError, ValueError, LookupError, TypeError):
            waiting.append(shard)
            continue
        if state != shard.state:
            raise OutputError(f"{shard.name} in {job.output} was made of other pictures: choose another folder")
        if written:
            done.append(manifest)
        else:
            waiting.append(shard)
    return waiting, done


class Worker:
    """Does one shard after another with one model, which is loaded with the first."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.codec = Codec(
            job.model, device=job.device, batch_size=job.batch_size, threads=job.threads, limits=job.limits
        )

    def __call__(self, shard: Shard) -> Manifest:
        """Its manifest, once all of it has reached the disk; {"source", "problem"} for a shard that cannot be read,
        which the next run tries again. Raises TitokcError for what concerns all shards."""
        job, source = self.job, shard.name if shard.is_files else str(shard.files[0][1])
        info = self.codec.info
        if info.weights.hex() != job.weights:
            raise ModelMismatchError(f"the model {job.model} is another here: {info.weights.hex()}, not {job.weights}")
        samples: list[tuple[str, bytes]] = []
        failed: list[dict[str, str]] = []
        options: dict[str, Any] = {"tokens": job.tokens, "effort": job.effort}
        encode = partial(self.codec.encode_many, details=True, return_errors=True, **options)
        try:
            for key, result in keyed(encode, self._usable(shard)):
                if isinstance(result, Encoded):
                    samples.append((key, result.data))
                else:
                    failed.append({"key": key, "reason": str(result)})
        except InputError as error:
            return {"source": source, "problem": str(error)}
        form = FORMATS[job.format]
        data = form.write(samples, info, job.limits)
        output = shard.name + form.suffix
        write_atomic(job.output / output, data)
        manifest = {"source": source, "state": shard.state, "output": output, "bytes": len(data)}
        manifest |= {"pictures": len(samples), "failed": failed}
        write_atomic(job.manifest(shard), json.dumps(manifest, indent=1).encode())
        return manifest

    def _usable(self, shard: Shard) -> Iterator[tuple[str, bytes | Path | TitokcError]]:
        """(key, picture) of the shard; an error in place of what has no bytes, no usable key, or another's key."""
        seen: set[str] = set()
        for key, picture in pictures(shard, self.job.limits):
            if self.job.format == "webdataset":  # whose keys end at the first dot
                folder, slash, last = key.rpartition("/")
                key = folder + slash + last.replace(".", "_")
            try:
                check_key(key)
                if key in seen and not isinstance(picture, TitokcError):
                    raise InputError(
                        f"a further picture of this key{f': {picture}' if isinstance(picture, Path) else ''}"
                    )
            except TitokcError as error:
                yield key, error
                continue
            seen.add(key)
            yield key, picture


def keyed(
    convert: Callable[[Iterator[Any]], Iterator[Any]], samples: Iterable[tuple[str, Any]]
) -> Iterator[tuple[str, Any]]:
    """What `convert` (of a codec, many) makes of (key, value) pairs, in order; errors among the values come last."""
    errors: list[tuple[str, Any]] = []
    keys: deque[str] = deque()

    def usable() -> Iterator[Any]:
        for key, value in samples:
            if isinstance(value, TitokcError):
                errors.append((key, value))
            else:
                keys.append(key)
                yield value

    for result in convert(usable()):
        yield keys.popleft(), result
    yield from errors
