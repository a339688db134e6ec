"""`titokc encode`: parses, calls `titokc.codec`, names the results."""

from functools import partial
from typing import Any

import click

from titokc.cli.batch import run
from titokc.cli.info import fields_of
from titokc.cli.options import (
    SUFFIXES,
    BatchOptions,
    Colour,
    Grid,
    batch_options,
    effort_option,
    form_of,
    inputs_argument,
    model_option,
    output_option,
)
from titokc.cli.plan import Naming, plan
from titokc.cli.report import Progress
from titokc.cli.streams import is_followed, read_picture
from titokc.options import Encoded


@click.command()
@inputs_argument
@output_option("File, folder, or - (stdout).")
@model_option
@click.option("--tokens", metavar="N", type=click.IntRange(1), help="Tokens per tile. [default: the model's most]")
@click.option("--tiles", metavar="auto|RxC", type=Grid("auto"), help="Grid of tiles, rows x columns. [default: 1x1]")
@click.option(
    "--target-size", metavar="BYTES", type=click.IntRange(1), help="Best grid and tokens within this many bytes."
)
@click.option("--target-psnr", metavar="DB", type=float, help="Smallest file found that is as near as this.")
@click.option("--target-ssim", metavar="0..1", type=float, help="The same by SSIM.")
@effort_option
@click.option("--bare", is_flag=True, help="The payload alone, without header and checksum.")
@click.option("--base64", is_flag=True, help="The payload alone as base64url text.")
@click.option(
    "--background", metavar="COLOR", type=Colour(), default="white", show_default=True, help="Under transparent pixels."
)
@click.option("--psnr", is_flag=True, help="Decode the result too, and say how near it is (dB).")
@batch_options
def encode(
    inputs: tuple[str, ...],
    output: str | None,
    model: str | None,
    bare: bool,
    base64: bool,
    options: BatchOptions,
    **chosen: Any,
) -> None:
    """Pictures -> .tok files.

    IN is a file (PNG, JPEG, WebP, TIFF, BMP, PPM, GIF, AVIF), a folder (its tree is mirrored into OUT; hidden files are
    left out), a quoted glob, or - for standard input. Without OUT photo.jpg becomes photo.tok beside it (photo.bin with
    --bare, photo.txt with --base64). --target-size counts the bytes of the result as written.
    """
    from titokc.imaging import READABLE_SUFFIXES

    form = form_of(bare, base64)
    tasks, notes = plan(inputs, output, Naming(READABLE_SUFFIXES, SUFFIXES[form], frozenset(SUFFIXES.values())))
    progress = Progress(options.quiet)
    codec = options.codec(model, progress.tiles)

    def read_stdin() -> bytes:
        data = read_picture(options.limits)
        if is_followed(data):
            notes.append("stdin: more than one picture, only the first is encoded")
        return data

    def describe(_: bytes, encoded: Encoded) -> dict[str, Any]:
        fields = fields_of(encoded.header, len(encoded.data))
        if encoded.psnr is not None:
            fields["psnr"] = round(encoded.psnr, 2)
        return fields

    code = run(
        tasks,
        partial(codec.encode_many, form=form, details=True, return_errors=True, **chosen),
        to_bytes=lambda encoded, _: encoded.data,
        describe=describe,
        tell=tell,
        progress=progress,
        options=options,
        notes=notes,
        read_stdin=read_stdin,
    )
    click.get_current_context().exit(code)


def tell(fields: dict[str, Any]) -> str:
    """Of a result, what was chosen for it."""
    tiles = fields["tiles"]
    grid = f" in {tiles['rows']}x{tiles['columns']} tiles" if tiles["rows"] * tiles["columns"] > 1 else ""
    quality = f", {fields['psnr']:.2f} dB" if "psnr" in fields else ""
    return f"{fields['tokens_per_tile']} tokens{grid}{quality}, "
