"""`titokc tokenize`: data sets of tokens; and what `info` says of their files."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import click

from titokc.cli.options import effort_option, engine_options, limit_options, model_option
from titokc.cli.plan import find
from titokc.cli.report import Report, say
from titokc.container import read_header
from titokc.errors import InputError, UsageError
from titokc.limits import DEFAULT_LIMITS, Limits
from titokc.options import DEFAULT_EFFORT

# Of keys that stand in more than one shard, so many are named.
_NAMED = 10


class Part(click.ParamType):
    """I/N, the part of the shards that this machine does -> (I, N)."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", str(value))
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            self.fail(f"{value!r}: expected I/N with I from 1 to N, such as 1/4", param, ctx)
        return int(match[1]), int(match[2])


@click.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="OUT", required=True, type=click.Path(path_type=Path), help="Folder.")
@click.option(
    "--format",
    type=click.Choice(["parquet", "webdataset"]),
    default="parquet",
    show_default=True,
    help="Rows of Parquet, or KEY.tok in tar.",
)
@click.option("--tokens", metavar="N", type=click.IntRange(1), help="Tokens a picture. [default: the model's most]")
@model_option
@effort_option(DEFAULT_EFFORT, str(DEFAULT_EFFORT))
@click.option(
    "--shard", "part", metavar="I/N", type=Part(), default="1/1", help="Only every Nth shard, from the Ith on."
)
@click.option("--runner", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option(
    "--workers",
    metavar="W",
    type=click.IntRange(1),
    help="Processes, each with a model. [default: 1; with Ray all GPUs or CPUs]",
)
@engine_options(
    "Pictures at a time on a GPU.", "CPU threads of each worker. [default: its share; with Ray 1]", choice=False
)
@limit_options(DEFAULT_LIMITS)
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def tokenize(
    sources: tuple[str, ...],
    output: Path,
    part: tuple[int, int],
    runner: str,
    workers: int | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Data sets of pictures -> data sets of tokens, one file for each shard.

    SOURCE is a folder, a quoted glob, a picture, a WebDataset shard (.tar) or a Parquet file with an image column.
    Pictures in files make shards of 1,000. The same command goes on where a killed one was; pictures that cannot be
    used are listed in OUT/_manifest.
    """
    from titokc.dataset import local, ray
    from titokc.dataset.job import MANIFESTS, pending, prepare
    from titokc.dataset.sinks import repeated_keys
    from titokc.dataset.sources import SHARD_SUFFIXES, shards
    from titokc.imaging import READABLE_SUFFIXES

    report = Report(quiet=quiet, as_json=False)
    notes: list[str] = []
    files = []
    for file in find(sources, READABLE_SUFFIXES | SHARD_SUFFIXES, notes):
        if file.problem:
            report.fail(file.name, file.problem)
        elif file.source is None:
            raise UsageError("standard input is no data set: expected a folder, a glob, .tar or .parquet")
        elif not os.path.exists(file.source):  # noqa: PTH110 - Path's own raises for long names
            report.fail(file.name, InputError("cannot be read: no such file"))
        elif output.resolve() not in file.source.resolve().parents:  # earlier results are no sources
            files.append(file.source)
    if not files and report.exit_code:
        click.get_current_context().exit(report.exit_code)
    mine = shards(sources, files)[part[0] - 1 :: part[1]]
    job = prepare(output, **options)
    waiting, manifests = pending(job, mine)
    before = len(manifests)
    run = ray.run if runner == "ray" else local.run
    for manifest in run(job, waiting, workers):
        if "problem" in manifest:
            report.fail(manifest["source"], InputError(manifest["problem"]))
            continue
        for failure in manifest["failed"]:
            report.fail(failure["key"], InputError(failure["reason"]))
        if not quiet:
            say(f"{manifest['source']} -> {manifest['output']}: {manifest['pictures']} pictures")
        manifests.append(manifest)
    if keys := repeated_keys([output / manifest["output"] for manifest in manifests]):
        named = f"{', '.join(keys[:_NAMED])}{' and others' if len(keys) > _NAMED else ''}"
        notes.append(f"{len(keys)} keys stand in more than one shard: {named}")
    for note in notes:
        report.note(note)
    failed = sum(len(manifest["failed"]) for manifest in manifests)
    if not quiet:
        pictures, size = (sum(manifest[name] for manifest in manifests) for name in ("pictures", "bytes"))
        ready = f" ({before} were ready)" if before else ""
        bad = f"; {failed} failed, see {output / MANIFESTS}" if failed else ""
        say(f"{pictures:,} pictures in {len(manifests)} of {len(mine)} shards{ready}: {size:,} bytes{bad}")
    click.get_current_context().exit(report.exit_code or int(failed > 0))


def is_set(name: str) -> bool:
    """Whether an argument of `decode` or `info` is a file of tokens of many pictures."""
    return Path(name).suffix.lower() in {".parquet", ".tar"}


def fields_of_set(path: Path, limits: Limits) -> dict[str, Any]:
    """What `titokc info` says of a file of `titokc tokenize`. Raises TitokcError."""
    from titokc.dataset.sinks import read

    counts: Counter[str] = Counter()
    models: Counter[str] = Counter()
    for _, sample in read(path):
        if isinstance(sample, bytes):
            header = read_header(sample, limits=limits)
            model, code, tokens = header.model, header.fingerprint.hex(), header.indices
        else:
            model, code, tokens = sample["model"], sample["fingerprint"], len(sample["tokens"] or ())
        counts[str(tokens)] += 1
        models[f"{model} (code {code})"] += 1
    size = path.stat().st_size
    pictures = counts.total()
    return {
        "pictures": pictures,
        "models": " ".join(models),
        "tokens_per_picture": " ".join(sorted(counts, key=int)),
        "file_bytes": size,
        "bytes_per_picture": round(size / max(1, pictures), 1),
    }
