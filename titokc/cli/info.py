"""`titokc info` and `titokc truncate`: what files say, and shorter ones from them, without model or picture."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from titokc.cli.options import inputs_argument, limit_options, output_option
from titokc.cli.plan import STDOUT_NAMES, Found, Naming, Task, find, is_folder, is_taken, plan
from titokc.cli.report import Report, printable, put, say
from titokc.cli.streams import read_stdin, write_result
from titokc.cli.tokenize import fields_of_set, is_set
from titokc.container import MAX_FILE_SIZE, SUFFIX, Header, examine, file_size, read_header, unpack
from titokc.container import truncate as truncate_file
from titokc.errors import OutputError, TitokcError, UsageError
from titokc.files import read_bytes
from titokc.limits import DEFAULT_LIMITS, Limits

# No pixels are made here, so that a header may declare any number of them.
ANY_SIZE = Limits(max_pixels=1 << 32, max_side=1 << 16, max_indices=DEFAULT_LIMITS.max_indices)
SUFFIXES = frozenset({SUFFIX})


def fields_of(header: Header, file_bytes: int) -> dict[str, Any]:
    """What a header says, and the size of what it is of; bpp counts the whole file.

    code: the start of the fingerprint of what gives the tokens their meaning; any model with that code decodes them.
    tokens_of_tiles: where they differ; tokens_per_tile is then the most.
    """
    unequal = {"tokens_of_tiles": header.counts} if header.shares else {}
    return {
        "format_version": header.version,
        "width": header.width,
        "height": header.height,
        "tiles": {"rows": header.rows, "columns": header.columns},
        "tokens_per_tile": header.tokens_per_tile,
        **unequal,
        "bits_per_index": header.bits_per_index,
        "model": header.model,
        "code": header.fingerprint.hex(),
        "payload_bytes": header.payload_bytes,
        "file_bytes": file_bytes,
        "bpp": file_bytes * 8 / (header.width * header.height),
    }


@click.command()
@inputs_argument
@click.option("--json", "as_json", is_flag=True, help="One JSON object; of several files one a line.")
@click.option("--tokens", "show_tokens", is_flag=True, help="The token indices too, in file order.")
@click.option("--partial", is_flag=True, help="Of a file that was cut short, what is there.")
@limit_options(ANY_SIZE)
def info(inputs: tuple[str, ...], as_json: bool, show_tokens: bool, partial: bool, limits: Limits) -> None:
    """What .tok files say about themselves, after all their checks.

    IN is a file, a folder (hidden files are left out), a quoted glob, or - for standard input; or a data set of
    `titokc tokenize` (.parquet, .tar).
    """
    notes: list[str] = []
    found = find(inputs, SUFFIXES, notes)
    several = len(found) > 1 or bool(found[0].inside)
    report = Report(quiet=False, as_json=as_json)
    for note in notes:
        report.note(note)
    for number, file in enumerate(found):
        try:
            if is_set(file.name):
                if show_tokens or partial:
                    raise UsageError("--tokens and --partial are for .tok files")
                fields = fields_of_set(Path(file.name), limits)
            else:
                data = _read(file)
                examined = examine(data, partial=partial, limits=limits)
                fields = fields_of(examined.header, len(data))
                if partial:
                    fields |= {"tokens_found": examined.tokens_found, "checksum_checked": examined.checksum_checked}
                if show_tokens:
                    fields["tokens"] = unpack(data, partial=partial, limits=limits)[1]
        except TitokcError as error:
            row = report.fail(file.name, error)
            if as_json:
                put(json.dumps({"input": file.name, **row}))
            continue
        report.counts["done"] += 1
        if as_json:
            put(json.dumps({"input": file.name, "status": "done", **fields} if several else fields))
        else:
            heading = [printable(file.name)] if several else []
            put("\n".join(["" for _ in heading if number] + heading + _lines(fields)))
    click.get_current_context().exit(report.exit_code)


@click.command()
@inputs_argument
@click.option("--tokens", metavar="N", type=click.IntRange(1), help="Tokens per tile to keep.")
@click.option("--target-size", metavar="BYTES", type=click.IntRange(1), help="Keep as many as fit.")
@output_option("File, folder, or - (stdout). [default: IN-N.tok beside it]")
@click.option("--force", is_flag=True, help="Overwrite a result that exists (otherwise that is an error).")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
@limit_options(ANY_SIZE)
def truncate(
    inputs: tuple[str, ...],
    tokens: int | None,
    target_size: int | None,
    output: str | None,
    force: bool,
    quiet: bool,
    limits: Limits,
) -> None:
    """Smaller .tok files from larger ones: their most important tokens, without the pictures and without a model.

    IN is a file, a folder (its tree is mirrored into OUT; hidden files are left out), a quoted glob, or - for standard
    input.
    """
    if (tokens is None) == (target_size is None):
        raise UsageError("say how short: either --tokens or --target-size")
    tasks, notes = plan(inputs, output, Naming(SUFFIXES, SUFFIX, SUFFIXES))
    named = output is not None and len(tasks) == 1 and not is_folder(output) and output not in STDOUT_NAMES
    report = Report(quiet=quiet, as_json=False)
    for note in notes:
        report.note(note)
    for task in tasks:
        try:
            data = _read(task)
            count = tokens or _most_tokens(read_header(data, limits=limits), target_size or 0)
            shorter = truncate_file(data, count, limits=limits)
            target = task.target
            if target and not named:
                suffix = task.source.suffix if task.source and output is None else target.suffix
                target = target.with_name(f"{target.stem}-{count}{suffix}")
            if target and is_taken(target) and not force:
                raise OutputError(f"{target} exists: --force overwrites it")
            write_result(target, shorter, overwrite=force)
        except TitokcError as error:
            report.fail(task.name, error)
            continue
        report.counts["done"] += 1
        if target and not quiet:
            say(f"{printable(task.name)} -> {printable(target)}: {len(data):,} -> {len(shorter):,} bytes")
    click.get_current_context().exit(report.exit_code)


def range_of(counts: Sequence[int]) -> str:
    """For people, of the tokens of each tile: "128", or "8 to 49" where they are unequal."""
    fewest, most = min(counts), max(counts)
    return f"{most}" if fewest == most else f"{fewest} to {most}"


def _read(file: Found | Task) -> bytes:
    if file.problem:
        raise file.problem
    return read_bytes(file.source, MAX_FILE_SIZE) if file.source else read_stdin(MAX_FILE_SIZE + 1)


def _lines(fields: dict[str, Any]) -> list[str]:
    """For people: a field a line."""
    shown = dict(fields)
    if "tiles" in fields:
        shown["tiles"] = f"{fields['tiles']['rows']}x{fields['tiles']['columns']} (rows x columns)"
        shown["bpp"] = f"{fields['bpp']:.5f}"
    if counts := shown.pop("tokens_of_tiles", ()):
        shown["tokens_per_tile"] = f"{range_of(counts)}, {sum(counts)} in all"
    if not shown.pop("checksum_checked", True):
        shown["tokens_found"] = f"{fields['tokens_found']} of each tile; the file was cut short, nothing checks them"
    if "tokens" in fields:
        shown["tokens"] = " ".join(map(str, fields["tokens"]))
    width = max(16, 1 + max(map(len, shown)))
    return [f"{name.replace('_', ' '):<{width}}{value}" for name, value in shown.items()]


def _most_tokens(header: Header, budget: int) -> int:
    """How many tokens a tile fit into `budget` bytes; UsageError if not even one does."""
    if file_size(header) <= budget:
        return header.tokens_per_tile
    sizes = (
        [file_size(replace(header, tokens_per_tile=n)) for n in range(1, header.tokens_per_tile)]
        if header.nested
        else []
    )
    fitting = sum(size <= budget for size in sizes)
    if not fitting:
        smallest = sizes[0] if sizes else file_size(header)
        raise UsageError(f"a budget of {budget} bytes is too small: this file can be cut to {smallest}")
    return fitting
