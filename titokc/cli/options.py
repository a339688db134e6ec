"""Options that several verbs share, and the types of their values: what can be refused before any file is read is."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce, wraps
from typing import TYPE_CHECKING, Any

import click

from titokc.errors import UsageError
from titokc.limits import DEFAULT_LIMITS, Limits
from titokc.options import EFFORTS

if TYPE_CHECKING:
    from titokc.codec import Codec

# The codec's forms and the suffixes of their files.
SUFFIXES = {"tok": ".tok", "bare": ".bin", "base64": ".txt"}


@dataclass(frozen=True)
class BatchOptions:
    """What `batch_options` collects: `engine`, how the model runs; what is refused; and what is written and said."""

    engine: dict[str, Any]
    limits: Limits
    skip_existing: bool
    force: bool
    as_json: bool
    quiet: bool

    def codec(self, model: str | None, progress: Callable[[int, int], object]) -> "Codec":
        """The codec that these options ask for; nothing is loaded yet. progress: told of the tiles of each picture."""
        from titokc.codec import Codec

        # Read when NumPy is imported, for the light engine: it shares tiles out among threads, not products.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        return Codec(model, limits=self.limits, progress=progress, **self.engine)


class Size(click.ParamType):
    """WIDTHxHEIGHT in pixels -> a pair."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", str(value))
        if not match or not int(match[1]) or not int(match[2]):
            self.fail(f"{value!r}: expected WIDTHxHEIGHT in pixels, such as 768x512", param, ctx)
        return int(match[1]), int(match[2])


class Grid(click.ParamType):
    """ROWSxCOLUMNS, or a word that the codec knows -> the same text."""

    name = "RxC"

    def __init__(self, *words: str) -> None:
        self.words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        match = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", str(value))
        if value not in self.words and not (match and int(match[1]) and int(match[2])):
            words = "".join(f" or {word}" for word in self.words)
            self.fail(f"{value!r}: expected ROWSxCOLUMNS, such as 2x3{words}", param, ctx)
        return str(value)


class Colour(click.ParamType):
    """A colour as Pillow writes it -> the same text."""

    name = "colour"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value != "white":  # the default imports nothing
            from PIL import ImageColor

            try:
                ImageColor.getrgb(str(value))
            except ValueError:
                self.fail(f"{value!r}: expected a colour's name, #rrggbb or rgb(r, g, b)", param, ctx)
        return str(value)


def inputs_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """IN...: files, folders, globs, "-"; whether they can be read is found one by one."""
    path = click.Path(allow_dash=True, readable=False)
    return click.argument("inputs", metavar="IN...", nargs=-1, required=True, type=path)(function)


def output_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    path = click.Path(allow_dash=True, readable=False)
    return click.option("-o", "--output", metavar="OUT", type=path, help=text)


model_option = click.option("--model", metavar="NAME|PATH", help="A known model or a model directory. [default: nano]")


def effort_option(default: int | None, shown: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "--effort",
        metavar="0..9",
        type=click.IntRange(0, EFFORTS[-1]),
        default=default,
        help=f"How long to search for better tokens; 0 takes the nearest. [default: {shown}]",
    )


def engine_options(
    what: str, threads: str, *, choice: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--device and the like, as `titokc.engines.open` takes them. choice: also --engine and --dtype."""
    from titokc.engines import DEFAULT_BATCH_SIZE, ENGINES

    number = click.IntRange(1)
    device = click.option(
        "--device", metavar="DEVICE", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."
    )
    engine = click.option(
        "--engine",
        type=click.Choice(ENGINES),
        default="auto",
        show_default=True,
        help="light: nano on the CPU, in NumPy; torch: all models. auto: light where it can.",
    )
    dtype = click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        help="Precision of torch's decoder. [default: bfloat16 where the processor or GPU has it, else float32]",
    )
    size = click.option(
        "--batch-size", metavar="N", type=number, default=DEFAULT_BATCH_SIZE, show_default=True, help=what
    )
    counts = (size, click.option("--threads", metavar="N", type=number, help=threads))
    return _all(device, *((engine, dtype) if choice else ()), *counts)


def batch_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every verb that runs a model over files, given to `function` as `options`, a BatchOptions."""

    @wraps(function)
    def collected(skip_existing: bool, force: bool, as_json: bool, quiet: bool, limits: Limits, **given: Any) -> Any:
        engine = {name: given.pop(name) for name in ("device", "engine", "dtype", "batch_size", "threads")}
        options = BatchOptions(engine, limits, skip_existing, force, as_json, quiet)
        return function(options=options, **given)

    return _all(
        engine_options("Tiles at a time on a GPU.", "CPU threads. [default: all cores]"),
        limit_options(DEFAULT_LIMITS),
        click.option("--skip-existing", is_flag=True, help="Leave out inputs whose result exists already."),
        click.option("--force", is_flag=True, help="Overwrite results that exist (otherwise that is an error)."),
        click.option("--json", "as_json", is_flag=True, help="One JSON object per file on stdout."),
        click.option("-q", "--quiet", is_flag=True, help="No progress bar, notes and summary; errors only."),
    )(collected)


def limit_options(defaults: Limits) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--max-pixels and the like, what a picture or header may declare at most, given to the verb as `limits`."""

    def limit(name: str, default: int, text: str) -> Callable[..., Any]:
        number = click.IntRange(1)
        return click.option(name, metavar="N", type=number, default=default, show_default=True, help=text)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def collected(max_pixels: int, max_side: int, max_indices: int, **given: Any) -> Any:
            return function(limits=Limits(max_pixels, max_side, max_indices), **given)

        return _all(
            limit("--max-pixels", defaults.max_pixels, "Refuse pictures with more."),
            limit("--max-side", defaults.max_side, "The same for width and for height."),
            limit("--max-indices", defaults.max_indices, "Refuse files with more tokens."),
        )(collected)

    return decorate


def _all(*options: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Several options as one, in this order in --help."""
    return lambda function: reduce(lambda decorated, option: option(decorated), reversed(options), function)


def form_of(bare: bool, base64: bool) -> str:
    """The codec's name of what --bare and --base64 ask for."""
    if bare and base64:
        raise UsageError("--bare and --base64 are two forms of the same payload: choose one")
    return "bare" if bare else "base64" if base64 else "tok"
