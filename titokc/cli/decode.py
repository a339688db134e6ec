"""`titokc decode`: parses, calls `titokc.codec`, names the results."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from titokc.cli.batch import SUFFIXES, BatchOptions, Naming, Task, batch_options, form_of, plan, run
from titokc.container import MAX_FILE_SIZE, read_header
from titokc.files import read_bytes

if TYPE_CHECKING:
    from PIL import Image


class Size(click.ParamType):
    """WIDTHxHEIGHT in pixels -> a pair."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", str(value))
        if not match or "0" in (match[1].lstrip("0") or "0", match[2].lstrip("0") or "0"):
            self.fail(f"{value!r}: expected WIDTHxHEIGHT in pixels, such as 768x512", param, ctx)
        return int(match[1]), int(match[2])


@click.command()
@click.argument("inputs", metavar="IN...", nargs=-1, required=True, type=click.Path(allow_dash=True))
@click.option(
    "-o", "--output", metavar="OUT", type=click.Path(allow_dash=True), help="File, folder, or - (PNG on stdout)."
)
@click.option("--model", metavar="NAME|PATH", help="Refuse files of any other model. [default: the one the file names]")
@click.option("--size", metavar="WxH", type=Size(), help="Size of the result in pixels. [default: the original's]")
@click.option("--partial", is_flag=True, help="Decode what is there of a file that was cut short.")
@click.option("--bare", is_flag=True, help="IN is a payload without header, of --model (default: nano).")
@click.option("--base64", is_flag=True, help="IN is such a payload as base64url text.")
@click.option("--tiles", metavar="RxC", default="1x1", show_default=True, help="The grid of a --bare payload.")
@batch_options
def decode(
    inputs: tuple[str, ...],
    output: str | None,
    model: str | None,
    size: tuple[int, int] | None,
    partial: bool,
    bare: bool,
    base64: bool,
    tiles: str,
    options: BatchOptions,
) -> None:
    """.tok files -> pictures.

    IN is a file, a folder (its tree is mirrored into OUT), a quoted glob, or - for standard input. OUT's suffix chooses
    the format; without OUT photo.tok becomes photo.png beside it. Files that are no .tok are refused at once.
    """
    form = form_of(bare, base64)
    tasks = plan(inputs, output, Naming(frozenset({SUFFIXES[form]}), ".png"))
    codec = options.codec(model)

    def convert(sources: list[Path | bytes]) -> Iterator[Any]:
        return codec.decode_many(sources, size=size, partial=partial, form=form, tiles=tiles, return_errors=True)

    def to_bytes(picture: "Image.Image", task: Task) -> bytes:
        from titokc.imaging import picture_bytes

        return picture_bytes(picture, task.target.suffix if task.target else ".png")

    def check(source: Path) -> None:
        if form == "tok":
            read_header(read_bytes(source, MAX_FILE_SIZE), partial=partial, limits=options.limits)

    code = run(
        tasks,
        convert,
        to_bytes,
        describe=lambda data, picture: {"file_bytes": len(data), "width": picture.width, "height": picture.height},
        check=check,
        options=options,
        longest_input=MAX_FILE_SIZE + 1,
    )
    click.get_current_context().exit(code)
