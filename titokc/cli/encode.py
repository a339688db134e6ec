"""`titokc encode`: parses, calls `titokc.codec`, names the results."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from titokc.cli.batch import Conversion
from titokc.cli.info import fields_of, range_of
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
from titokc.cli.streams import is_followed, read_picture
from titokc.errors import UsageError
from titokc.options import BUDGET_EFFORT, DEFAULT_EFFORT, SMALL_BUDGET, TUNED_EFFORT, TUNES, Encoded


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
@effort_option(
    None,
    f"{DEFAULT_EFFORT}; {BUDGET_EFFORT} with --target-size up to {SMALL_BUDGET}, {TUNED_EFFORT} with --tune natural",
)
@click.option(
    "--tune",
    type=click.Choice(TUNES),
    default="psnr",
    show_default=True,
    help="What the search makes nearer; natural: how the natural look looks, with torch.",
)
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

    if chosen["tune"] != "psnr" and options.engine["engine"] == "auto":
        options.engine["engine"] = "torch"
    form = form_of(bare, base64)
    if output and Path(output).suffix.lower() in READABLE_SUFFIXES and not Path(output).is_dir():
        raise UsageError(f"{output}: a {SUFFIXES[form]} file is no picture")
    tasks, notes = plan(inputs, output, Naming(READABLE_SUFFIXES, SUFFIXES[form], frozenset(SUFFIXES.values())))
    click.get_current_context().exit(_Encoding(model, options, form=form, **chosen).run(tasks, notes))


class _Encoding(Conversion):
    def read_stdin(self) -> bytes:
        data = read_picture(self.options.limits)
        if is_followed(data):
            self.report.note("stdin: more than one picture, only the first is encoded")
        return data

    def convert(self, sources: Iterable[Path | bytes]) -> Iterator[Any]:
        return self.codec.encode_many(sources, details=True, return_errors=True, **self.chosen)

    def to_bytes(self, encoded: Encoded, _: Path | None) -> bytes:
        return encoded.data

    def describe(self, encoded: Encoded, size: int) -> tuple[dict[str, Any], str]:
        header = encoded.header
        fields, quality = fields_of(header, size), ""
        if encoded.psnr is not None:
            fields["psnr"] = round(encoded.psnr, 2)
            quality = f", {encoded.psnr:.2f} dB"
        grid = f" in {header.rows}x{header.columns} tiles" if header.tiles > 1 else ""
        return fields, f"{range_of(header.counts)} tokens{grid}{quality}"
