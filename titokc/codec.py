"""Pictures -> tokens -> bytes and back: what happens to one picture, from top to bottom, and to many side by side.

`titokc.imaging` reads pictures and `titokc.tiling` cuts them, `titokc.engines` runs the model, `titokc.container` makes
the bytes. Engines are opened when the first picture needs one, so that what cannot be read is refused without it.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, BinaryIO

from titokc import coding, container, engines, payload
from titokc.budget import candidates, finalists, header_of, reduction, smallest, stages
from titokc.container import FINGERPRINT_SIZE, MAX_FILE_SIZE, MAX_SIDE, Examined, Header
from titokc.errors import ModelMismatchError, ModelNotFoundError, TitokcError, UsageError
from titokc.files import read_bytes
from titokc.ids import CUSTOM_MODEL_ID
from titokc.limits import DEFAULT_LIMITS, Limits
from titokc.many import Work, in_order
from titokc.options import Decoded, DecodeOptions, Encoded, EncodeOptions, check_number

if TYPE_CHECKING:
    from PIL import Image

    from titokc.engines.base import Engine
    from titokc.imaging import Picture
    from titokc.models.info import ModelInfo
    from titokc.models.interface import Tokenizer

    TokFile = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO

DEFAULT_MODEL = "nano"


class Codec:
    """Encodes and decodes pictures; the model is loaded once, when it is first needed. Threads may share a codec.

    model: a known name or a model directory. By default `encode` uses "nano", and `decode` the model that the file
        names. With a model given, files of any other code are refused.
    tokenizer: a loaded model instead of a name, on the device where it is.
    device, engine, dtype, batch_size, threads: see `titokc.engines.open`.
    limits: pictures beyond these are refused, on both sides.
    progress: called as progress(done, total) with the tiles of a picture, from any thread.

    On one machine and with one engine the tokens of a picture depend on nothing else: not on what is encoded beside it,
    nor on `threads` (on devices other than the CPU they may depend on `batch_size`). Nor do decoded samples with the
    light engine; with torch's they may differ by 1 of 255 between numbers of threads (see `titokc.engines.torch`).
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        device: str = "auto",
        engine: str = "auto",
        dtype: str | None = None,
        batch_size: int = engines.DEFAULT_BATCH_SIZE,
        threads: int | None = None,
        limits: Limits = DEFAULT_LIMITS,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        if model is not None and tokenizer is not None:
            raise UsageError("give a model's name or a loaded tokenizer, not both")
        if model is not None and not isinstance(model, (str, os.PathLike)):
            raise UsageError(f"model {model!r}: expected a name or a path; a loaded model is given as tokenizer=")
        if not isinstance(limits, Limits):
            raise UsageError(f"limits {limits!r}: expected titokc.Limits")
        for name, number in (("batch size", batch_size), ("threads", 1 if threads is None else threads)):
            check_number(name, number)
        self.model = model
        self.limits = limits
        self._given = tokenizer if model is None else model
        self._settings: dict[str, Any] = {
            "device": str(device),
            "engine": engine,
            "dtype": dtype,
            "batch_size": batch_size,
            "threads": threads,
        }
        self._progress = progress
        self._engines: dict[Any, Engine] = {}
        self._opening = threading.Lock()

    @property
    def info(self) -> ModelInfo:
        """What is known of the model that encodes; loads it."""
        return self._engine().info

    def encode(self, picture: Picture, **options: Any) -> bytes:
        """A picture (a Pillow image, a path, a file's bytes or an open binary file) -> the bytes of its `.tok` file.

        `options`: see `EncodeOptions`.
        """
        return self._encode(picture, EncodeOptions(**options), Work(self._progress)).data

    def decode(self, data: TokFile, **options: Any) -> Image.Image:
        """A `.tok` file's bytes, its path or the open file -> an RGB picture. `options`: see `DecodeOptions`."""
        return self._decode(data, DecodeOptions(**options), Work(self._progress)).picture

    def encode_many(
        self, pictures: Iterable[Picture], *, details: bool = False, return_errors: bool = False, **options: Any
    ) -> Iterator[Any]:
        """Pictures -> `.tok` bytes, in order, while the input is still being read; a few pictures at the same time.

        details: yield `Encoded` instead of bytes. return_errors: yield a picture's TitokcError in its place instead of
        raising it; what concerns all pictures (no such model, no such number of tokens) is raised all the same.
        `options`: see `EncodeOptions`.
        """
        chosen = EncodeOptions(**options)
        results = self._in_order(lambda picture, work: self._encode(picture, chosen, work), pictures, return_errors)
        return results if details else (one.data if isinstance(one, Encoded) else one for one in results)

    def decode_many(
        self, files: Iterable[TokFile], *, details: bool = False, return_errors: bool = False, **options: Any
    ) -> Iterator[Any]:
        """`.tok` files (as `decode` takes them) -> RGB pictures, in order.

        details: yield `Decoded` instead of pictures. return_errors: as for `encode_many`. `options`: see
        `DecodeOptions`.
        """
        chosen = DecodeOptions(**options)
        results = self._in_order(lambda data, work: self._decode(data, chosen, work), files, return_errors)
        return results if details else (one.picture if isinstance(one, Decoded) else one for one in results)

    def _encode(self, picture: Picture, options: EncodeOptions, work: Work) -> Encoded:
        from titokc import imaging

        notes: list[str] = []
        image = imaging.read(picture, background=options.background, limits=self.limits, notes=notes)
        with _concerning_all():
            engine = self._engine()
            engine.info.check_tokens(options.tokens)
        header, indices = self._plan(image, engine, options, work)
        if indices is None:
            indices = self._indices(image, header, engine, options, work)
        data = _pack(header, indices, options.form)
        psnr = _nearness(image, indices, header, engine, work) if options.psnr else None
        return Encoded(data, header, tuple(notes), psnr)

    def _plan(
        self, image: Image.Image, engine: Engine, options: EncodeOptions, work: Work
    ) -> tuple[Header, list[int] | None]:
        """The picture's header (with a budget that of the candidate that loses least, with a goal that of the smallest
        that reaches it), and its indices if they were made on the way."""
        from titokc import tiling

        def tried(
            header: Header, effort: int, metric: str = "psnr", image: Image.Image = image
        ) -> tuple[float, list[int]]:
            indices = self._indices(image, header, engine, replace(options, effort=effort), work)
            return _nearness(image, indices, header, engine, work, metric), indices

        grid = None if options.tiles is None else tiling.parse_grid(options.tiles, image.size, engine.info.side)
        if grid is None and options.form != "tok":
            grid = (1, 1)
        most, small = engine.info.max_tokens, image
        if options.target_size is not None:
            most = min(most, options.target_size * 8 // engine.info.bits)
            factor = reduction(image.size, engine.info, options.target_size)
            small = image.reduce(factor) if factor > 1 else image
        told = lru_cache(maxsize=None)(lambda grid: coding.distortions(small, grid, most, engine, work))
        if options.goal:
            return smallest(
                image.size,
                engine.info,
                grid,
                options.goal,
                options.search_effort,
                told if engine.info.nested and options.form == "tok" else None,
                partial(tried, metric=options.goal[0]),
            )
        if options.target_size is None:
            header = header_of(engine.info, image.size, grid or (1, 1), options.tokens or engine.info.max_tokens)
            container.file_size(header)  # refuses what the container cannot hold
            return header, None
        headers = candidates(image.size, engine.info, grid, options, told)
        found: list[tuple[float, list[int], Header]] = []
        for stage in stages(options.search_effort):
            if len(headers) == 1:
                return headers[0], None
            work.foresee(2 * sum(header.tiles for header in headers))
            picture = image if stage.whole else small
            found = [(*tried(header, stage.effort, image=picture), header) for header in headers]
            found.sort(key=lambda one: -one[0])
            headers = finalists(found, stage)
        _, indices, header = found[0]
        return header, indices

    def _indices(
        self, image: Image.Image, header: Header, engine: Engine, options: EncodeOptions, work: Work
    ) -> list[int]:
        self.limits.check_indices(header.tiles, header.tokens_per_tile, header.indices)
        return coding.to_indices(image, header, engine, options, work)

    def _decode(self, source: TokFile, options: DecodeOptions, work: Work) -> Decoded:
        notes: tuple[str, ...] = ()
        data = _data(source, options.form)
        if options.form == "tok":
            # With another size for the result, the file's own makes no pixels.
            limits = replace(self.limits, max_pixels=MAX_SIDE**2, max_side=MAX_SIDE) if options.size else self.limits
            header, indices = container.unpack(data, partial=options.partial, limits=limits)
            if options.partial:
                notes = _left_of(container.examine(data, partial=True, limits=limits))
            engine = self._engine_for(header)
        else:
            with _concerning_all():
                engine = self._engine()
            header, indices = _unpack_bare(data, engine.info, options, self.limits)
            if options.partial:
                notes = (f"{header.tokens_per_tile} tokens a tile are there; a payload alone has no checksum",)
        _check(header, engine.info)
        payload.check_indices(indices, engine.info.codebook_size)
        size = options.size or (header.width, header.height)
        self.limits.check(size)
        return Decoded(coding.to_picture(indices, header, engine, options.look, size, work), header, notes)

    def _engine(self, model: Any = None) -> Engine:
        """That of a model; by default of the one that was given, or else the one that encodes."""
        model = model or self._given or DEFAULT_MODEL
        with self._opening:
            if model not in self._engines:
                self._engines[model] = engines.open(model, **self._settings)
            return self._engines[model]

    def _engine_for(self, header: Header) -> Engine:
        """The engine of a file's code: with a model given its own, else one that is open, else one that is found."""
        if self._given is not None:
            with _concerning_all():
                return self._engine()
        with self._opening:
            for engine in self._engines.values():
                if _fits(header, engine.info):
                    return engine
        if header.model_id != CUSTOM_MODEL_ID:
            return self._engine(header.model)
        from titokc import weights

        for folder in weights.find(header.fingerprint):
            engine = self._engine(folder)
            if _fits(header, engine.info):
                return engine
        raise ModelNotFoundError(
            f"the file was made with a custom model (code {header.fingerprint.hex()}...) that is not installed: "
            "give it with --model, or install it with `titokc models install`"
        )

    def _in_order(
        self, convert: Callable[[Any, Work], Any], sources: Iterable[Any], return_errors: bool
    ) -> Iterator[Any]:
        """At most as many at a time as keep the engines busy. What cannot be many is refused at once."""
        if isinstance(sources, (str, bytes, bytearray, memoryview, os.PathLike)) or not isinstance(sources, Iterable):
            raise UsageError(f"expected a list or an iterator, found one {type(sources).__name__}")

        def width() -> int:
            return 2 + max((engine.width for engine in self._engines.values()), default=0)

        return in_order(convert, sources, width, self._progress, return_errors)


@contextmanager
def _concerning_all() -> Iterator[None]:
    """Errors raised inside are those of the codec, not of one picture."""
    try:
        yield
    except TitokcError as error:
        error.concerns_all = True
        raise


def _nearness(
    image: Image.Image, indices: list[int], header: Header, engine: Engine, work: Work, metric: str = "psnr"
) -> float:
    """Of what the indices decode to."""
    import numpy as np

    from titokc.judge import pixels

    picture = coding.to_picture(indices, header, engine, "", image.size, work)
    found = {"psnr": pixels.psnr, "ssim": pixels.ssim}[metric](np.asarray(image), np.asarray(picture))
    if found is None:
        raise UsageError(f"target_{metric}: not defined for a picture of {image.width}x{image.height}")
    return found


def _pack(header: Header, indices: list[int], form: str) -> bytes:
    if form == "tok":
        return container.pack(header, indices)
    bare = payload.pack_bare(indices, header.bits_per_index)
    return bare if form == "bare" else payload.to_text(bare).encode("ascii")


def _data(source: TokFile, form: str) -> bytes:
    """A file's bytes; as base64, a text is itself, not a file's name."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, str) and form == "base64":
        return source.encode("utf-8", "replace")
    if isinstance(source, (str, os.PathLike)):
        return read_bytes(source, MAX_FILE_SIZE)
    if hasattr(source, "read") and not isinstance(source, io.TextIOBase):
        return source.read(MAX_FILE_SIZE + 1)
    raise UsageError(f"expected the bytes of a file, its path or an open binary file; found {type(source).__name__}")


def _left_of(found: Examined) -> tuple[str, ...]:
    """What to say of a file that was cut short; nothing of a whole one."""
    if found.checksum_checked:
        return ()
    declared = found.header.tokens_per_tile
    return (f"{found.tokens_found} tokens a tile are there, of {declared}; the checksum is not: they may be wrong",)


def _unpack_bare(data: bytes, info: ModelInfo, options: DecodeOptions, limits: Limits) -> tuple[Header, list[int]]:
    from titokc import tiling

    size = options.size or (info.side, info.side)
    grid = tiling.parse_grid(options.tiles, size, info.side)
    unpack = payload.unpack_bare if options.form == "bare" else payload.unpack_text
    indices = unpack(data, info.bits, partial=options.partial, limits=limits)
    tiles = grid[0] * grid[1]
    tokens, rest = divmod(len(indices), tiles)
    if rest and not options.partial:
        raise UsageError(f"{len(indices)} tokens do not share out among {grid[0]}x{grid[1]} tiles")
    fewest = 1 if info.nested else info.max_tokens
    if not fewest <= tokens <= info.max_tokens:
        expected = f"{fewest}..{info.max_tokens}" if info.nested else f"{fewest}"
        raise UsageError(f"{len(data)} bytes are {tokens} tokens a tile, expected {expected} for {info.name}")
    return header_of(info, size, grid, tokens), indices[: tokens * tiles]


def _fits(header: Header, info: ModelInfo) -> bool:
    """Whether this is the code that the file was made in, as far as its header tells."""
    return (
        info.code[:FINGERPRINT_SIZE] == header.fingerprint
        and (info.bits, info.nested) == (header.bits_per_index, header.nested)
        and (info.id in {header.model_id, CUSTOM_MODEL_ID} or header.model_id == CUSTOM_MODEL_ID)
        and info.max_tokens >= header.tokens_per_tile
    )


def _check(header: Header, info: ModelInfo) -> None:
    """Raises ModelMismatchError unless the model can decode the file, or what is left of it."""
    if not _fits(header, info):
        raise ModelMismatchError(
            f"the file was made with {header.model} (code {header.fingerprint.hex()}...), "
            f"the model at hand is {info.name} (code {info.code.hex()[:16]}...)"
        )
    if not info.nested and header.tokens_per_tile < info.max_tokens:
        raise ModelMismatchError(
            f"{header.tokens_per_tile} of {info.max_tokens} tokens: with {info.name} a part of a code is no picture"
        )


@lru_cache(maxsize=4)
def _shared(model: str | None, device: str) -> Codec:
    return Codec(model, device=device)


def encode(picture: Picture, *, model: str | None = None, device: str = "auto", **options: Any) -> bytes:
    """A picture (a Pillow image, a path, a file's bytes or an open binary file) -> the bytes of its `.tok` file.

    model, device: see `Codec`; the model stays loaded for the next call. `options`: see `EncodeOptions`.
    """
    return _shared(model, device).encode(picture, **options)


def decode(data: TokFile, *, model: str | None = None, device: str = "auto", **options: Any) -> Image.Image:
    """A `.tok` file's bytes, its path or the open file -> an RGB picture of the original's size.

    model, device: see `Codec`; the model stays loaded for the next call. `options`: see `DecodeOptions`.
    """
    return _shared(model, device).decode(data, **options)
