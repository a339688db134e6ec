"""`titokc decode`: parses, calls `titokc.codec`, names the results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from titokc.cli.batch import Conversion
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
from titokc.cli.plan import STDOUT_NAMES, Naming, Task, find, is_folder, plan
from titokc.cli.report import Report
from titokc.cli.streams import read_stdin
from titokc.cli.tokenize import is_set
from titokc.container import MAX_FILE_SIZE, read_header
from titokc.errors import TitokcError, UsageError
from titokc.files import read_bytes
from titokc.options import Decoded

if TYPE_CHECKING:
    from titokc.dataset.sinks import Sample

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
        click.get_current_context().exit(_decode_sets(inputs, output, model, chosen["look"], options))
    form = form_of(bare, base64)
    if form == "tok" and chosen["tiles"] != "1x1":
        raise UsageError("--tiles is for payloads alone (--bare, --base64): a .tok file says its own")
    tasks, notes = plan(inputs, output, Naming(frozenset({SUFFIXES[form]}), ".png", WRITTEN))
    if output and output not in STDOUT_NAMES and not is_folder(output) and len(tasks) == 1:
        _check_suffix(Path(output))
    click.get_current_context().exit(_Decoding(model, options, form=form, **chosen).run(tasks, notes))


class _Decoding(Conversion):
    def read_stdin(self) -> bytes:
        return read_stdin(MAX_FILE_SIZE + 1)

    def convert(self, sources: Iterable[Path | bytes]) -> Iterator[Any]:
        return self.codec.decode_many(sources, details=True, return_errors=True, **self.chosen)

    def to_bytes(self, decoded: Decoded, target: Path | None) -> bytes:
        from titokc.imaging import picture_bytes

        return picture_bytes(decoded.picture, _suffix(target))

    def describe(self, decoded: Decoded, size: int) -> tuple[dict[str, Any], str]:
        width, height = decoded.picture.size
        fields = {"file_bytes": size, "tokens_per_tile": decoded.header.tokens_per_tile}
        return fields | {"width": width, "height": height}, f"{width}x{height}"

    def check(self, source: Path) -> None:
        if self.chosen["form"] == "tok":
            read_header(read_bytes(source, MAX_FILE_SIZE), partial=self.chosen["partial"], limits=self.options.limits)


def _decode_sets(inputs: Sequence[str], output: str | None, model: str | None, look: str, options: BatchOptions) -> int:
    """Files of `titokc tokenize` -> OUT/KEY.png; the exit code."""
    from titokc.dataset.job import keyed
    from titokc.dataset.sinks import model_of, read, to_tok
    from titokc.dataset.sources import check_key

    if output is None or not all(map(is_set, inputs)):
        raise UsageError("data sets (.parquet, .tar) are decoded by themselves, into a folder: say which with -o")
    report = Report(quiet=options.quiet, as_json=options.as_json)

    def task(key: str) -> Task:
        return Task(key, None, Path(output, f"{key}.png"))

    def usable(samples: Iterable[tuple[str, Sample]], decoding: _Decoding) -> Iterator[tuple[str, bytes | TitokcError]]:
        for key, sample in samples:
            try:
                check_key(key)
                if decoding.is_done(task(key)):
                    decoding.finish(task(key), None)
                else:
                    yield key, sample if isinstance(sample, bytes) else to_tok(sample, decoding.codec.info)
            except TitokcError as error:
                yield key, error

    for file in find(inputs, frozenset(), []):
        try:
            if file.problem:
                raise file.problem
            samples = read(Path(file.name))
            first = list(islice(samples, 1))
            decoding = _Decoding(model or (model_of(first[0][1]) if first else None), options, report, look=look)
            for key, result in keyed(decoding.convert, usable(chain(first, samples), decoding)):
                decoding.finish(task(key), result)
        except TitokcError as error:
            report.fail(file.name, error)
    report.summarise([])
    return report.exit_code


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
