"""`titokc info` and `titokc truncate`: what a file says, and a shorter one from it, without model or picture."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from titokc.cli.batch import is_folder, limit_options, write_result
from titokc.container import MAX_FILE_SIZE, VERSION, Header, file_size, read_header, unpack
from titokc.container import truncate as truncate_file
from titokc.errors import OutputError, UsageError
from titokc.files import read_bytes
from titokc.limits import Limits


def header_fields(data: bytes, limits: Limits) -> dict[str, Any]:
    """What `titokc info --json` says of a `.tok` file; bpp counts the whole file."""
    header = read_header(data, limits=limits)
    return {
        "format_version": VERSION,
        "width": header.width,
        "height": header.height,
        "tiles": {"rows": header.rows, "columns": header.columns},
        "tokens_per_tile": header.tokens_per_tile,
        "bits_per_index": header.bits_per_index,
        "model": header.model,
        "fingerprint": header.fingerprint.hex(),
        "payload_bytes": header.payload_bytes,
        "file_bytes": len(data),
        "bpp": len(data) * 8 / (header.width * header.height),
    }


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--tokens", "show_tokens", is_flag=True, help="The token indices too, in file order.")
@limit_options
def info(file: str, as_json: bool, show_tokens: bool, limits: Limits) -> None:
    """What a .tok file says about itself, after all its checks."""
    data = _read(file)
    fields = header_fields(data, limits)
    if show_tokens:
        fields["tokens"] = unpack(data, limits=limits)[1]
    if as_json:
        click.echo(json.dumps(fields))
        return
    tiles = fields["tiles"]
    fields |= {"tiles": f"{tiles['rows']}x{tiles['columns']} (rows x columns)", "bpp": f"{fields['bpp']:.5f}"}
    if show_tokens:
        fields["tokens"] = " ".join(map(str, fields["tokens"]))
    for name, value in fields.items():
        click.echo(f"{name.replace('_', ' '):<16}{value}")


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@click.option("--tokens", metavar="N", type=click.IntRange(1), help="Tokens per tile to keep.")
@click.option("--target-size", metavar="BYTES", type=click.IntRange(1), help="Keep as many as fit.")
@click.option("-o", "--output", metavar="OUT", type=click.Path(allow_dash=True), help="[default: FILE-N.tok beside it]")
@click.option("--force", is_flag=True, help="Overwrite a result that exists (otherwise that is an error).")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
@limit_options
def truncate(
    file: str,
    tokens: int | None,
    target_size: int | None,
    output: str | None,
    force: bool,
    quiet: bool,
    limits: Limits,
) -> None:
    """A smaller .tok file from a larger one: its most important tokens, without the picture and without a model."""
    if (tokens is None) == (target_size is None):
        raise UsageError("say how short: either --tokens or --target-size")
    data = _read(file)
    if tokens is None:
        tokens = _most_tokens(read_header(data, limits=limits), target_size or 0)
    shorter = truncate_file(data, tokens, limits=limits)
    source = Path(file)
    name = f"{source.stem}-{tokens}{source.suffix}" if file != "-" else f"stdin-{tokens}.tok"
    target: Path | None = source.with_name(name)
    if output == "-" or (output is None and file == "-"):
        target = None
    elif output:
        target = Path(output) / name if is_folder(output) else Path(output)
    if target and os.path.exists(target) and not force:  # noqa: PTH110 - Path's own raises for long names
        raise OutputError(f"{target} exists: --force overwrites it")
    write_result(target, shorter)
    if target and not quiet:
        click.echo(f"{file} -> {target}: {len(data):,} -> {len(shorter):,} bytes", err=True)


def _read(file: str) -> bytes:
    return sys.stdin.buffer.read(MAX_FILE_SIZE + 1) if file == "-" else read_bytes(file, MAX_FILE_SIZE)


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
