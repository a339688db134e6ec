"""`titokc decode`: parses, calls `titokc.codec`, names the results."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from titokc.cli.batch import run
from titokc.cli.options import (
    SUFFIXES,
    BatchOptions,
    Grid,
    Size,
    batch_options,
    form_of,
    inputs_argument,
    output_option,
)
from titokc.cli.plan import STDOUT_NAMES, Naming, Task, is_folder, plan
from titokc.cli.report import Progress
from titokc.cli.streams import read_stdin
from titokc.cli.tokenize import decode_sets, is_set
from titokc.container import MAX_FILE_SIZE, read_header
from titokc.errors import UsageError
from titokc.files import read_bytes
from titokc.options import Decoded

# What titokc.imaging writes; a test holds the two equal. No import of Pillow for what is no .tok file.
WRITTEN = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".avif"})


@click.command()
@inputs_argument
@output_option("File, folder, or - (PNG on stdout).")
@click.option("--model", metavar="NAME|PATH", help="Refuse files of any other model. [default: the one the file names]")
@click.option("--size", metavar="WxH", type=Size(), help="Size of the result in pixels. [default: the original's]")
@click.option(
    "--look",
    metavar="LOOK",
    default="",
    help="faithful (nearest to the original) or natural (with invented texture). [default: faithful]",
)
@click.option("--partial", is_flag=True, help="Decode what is there of a file that was cut short.")
@click.option("--bare", is_flag=True, help="IN is a payload without header, of --model (default: nano).")
@click.option("--base64", is_flag=True, help="IN is such a payload as base64url text.")
@click.option(
    "--tiles", metavar="RxC", type=Grid(), default="1x1", show_default=True, help="The grid of a --bare payload."
)
@batch_options
def decode(
    inputs: tuple[str, ...],
    output: str | None,
    model: str | None,
    bare: bool,
    base64: bool,
    options: BatchOptions,
    **chosen: Any,
) -> None:
    """.tok files -> pictures.

    IN is a file, a folder (its tree is mirrored into OUT; hidden files are left out), a quoted glob, or - for standard
    input; or a data set of `titokc tokenize` (.parquet, .tar), which becomes OUT/KEY.png. OUT's suffix chooses the
    format; without OUT photo.tok becomes photo.png beside it. Files that are no .tok are refused at once.
    """
    if any(map(is_set, inputs)):
        if bare or base64 or chosen["size"] or chosen["partial"] or chosen["tiles"] != "1x1":
            raise UsageError("of a data set whole pictures are decoded: without --size, --partial, --bare and --tiles")
        click.get_current_context().exit(decode_sets(inputs, output, model, chosen["look"], options))
    form = form_of(bare, base64)
    tasks, notes = plan(inputs, output, Naming(frozenset({SUFFIXES[form]}), ".png", WRITTEN))
    if output and output not in STDOUT_NAMES and not is_folder(output) and len(tasks) == 1:
        _check_suffix(Path(output))
    progress = Progress(options.quiet)
    codec = options.codec(model, progress.tiles)

    def to_bytes(decoded: Decoded, task: Task) -> bytes:
        from titokc.imaging import picture_bytes

        return picture_bytes(decoded.picture, _suffix(task.target))

    def describe(data: bytes, decoded: Decoded) -> dict[str, Any]:
        fields = {"file_bytes": len(data), "tokens_per_tile": decoded.header.tokens_per_tile}
        return fields | {"width": decoded.picture.width, "height": decoded.picture.height}

    def check(source: Path) -> None:
        if form == "tok":
            read_header(read_bytes(source, MAX_FILE_SIZE), partial=chosen["partial"], limits=options.limits)

    code = run(
        tasks,
        partial(codec.decode_many, form=form, details=True, return_errors=True, **chosen),
        to_bytes,
        describe=describe,
        tell=lambda fields: f"{fields['width']}x{fields['height']}, ",
        check=check,
        progress=progress,
        options=options,
        notes=notes,
        read_stdin=lambda: read_stdin(MAX_FILE_SIZE + 1),
    )
    click.get_current_context().exit(code)


def _suffix(target: Path | None) -> str:
    """Of the format to write; pipes and devices get PNG."""
    is_stream = target is None or (not target.suffix and target.exists() and not target.is_file())
    return ".png" if is_stream or target is None else target.suffix


def _check_suffix(target: Path) -> None:
    """Raises UsageError for a format that cannot be written, before anything is decoded for it."""
    suffix = _suffix(target)
    if suffix.lower() not in WRITTEN:
        from titokc.imaging import writer

        writer(suffix)
