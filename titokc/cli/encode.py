"""`titokc encode`: parses, calls `titokc.codec`, names the results."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from titokc.cli.batch import SUFFIXES, BatchOptions, Naming, batch_options, form_of, plan, run
from titokc.cli.info import header_fields
from titokc.codec import DEFAULT_EFFORT


@click.command()
@click.argument("inputs", metavar="IN...", nargs=-1, required=True, type=click.Path(allow_dash=True))
@click.option("-o", "--output", metavar="OUT", type=click.Path(allow_dash=True), help="File, folder, or - (stdout).")
@click.option("--model", metavar="NAME|PATH", help="A known model or a model directory. [default: nano]")
@click.option("--tokens", metavar="N", type=click.IntRange(1), help="Tokens per tile. [default: the model's most]")
@click.option("--tiles", metavar="auto|RxC", help="Grid of tiles, rows x columns. [default: 1x1]")
@click.option(
    "--target-size", metavar="BYTES", type=click.IntRange(1), help="Best grid and tokens within this many bytes."
)
@click.option(
    "--effort",
    metavar="N",
    type=click.IntRange(0, 100),
    default=DEFAULT_EFFORT,
    show_default=True,
    help="Rounds of search for better tokens.",
)
@click.option("--bare", is_flag=True, help="The payload alone, without header and checksum.")
@click.option("--base64", is_flag=True, help="The payload alone as base64url text.")
@click.option("--background", metavar="COLOR", default="white", show_default=True, help="Under transparent pixels.")
@batch_options
def encode(
    inputs: tuple[str, ...],
    output: str | None,
    model: str | None,
    tokens: int | None,
    tiles: str | None,
    target_size: int | None,
    effort: int,
    bare: bool,
    base64: bool,
    background: str,
    options: BatchOptions,
) -> None:
    """Pictures -> .tok files.

    IN is a file (PNG, JPEG, WebP, TIFF, BMP, PPM, GIF, AVIF), a folder (its tree is mirrored into OUT), a quoted glob,
    or - for standard input. Without OUT photo.jpg becomes photo.tok beside it (photo.bin with --bare, photo.txt with
    --base64). --target-size counts the bytes of the result as written.
    """
    from titokc.imaging import READABLE_SUFFIXES

    form = form_of(bare, base64)
    tasks = plan(inputs, output, Naming(READABLE_SUFFIXES, SUFFIXES[form]))
    codec = options.codec(model)

    def convert(sources: list[Path | bytes]) -> Iterator[Any]:
        return codec.encode_many(
            sources,
            tokens=tokens,
            tiles=tiles,
            target_size=target_size,
            effort=effort,
            background=background,
            form=form,
            return_errors=True,
        )

    code = run(
        tasks,
        convert,
        to_bytes=lambda data, _: data,
        describe=lambda data, _: header_fields(data, options.limits) if form == "tok" else {"file_bytes": len(data)},
        options=options,
    )
    click.get_current_context().exit(code)
