"""Pictures <-> tokens <-> `.tok` bytes: the one module that joins a model with the container.

`titokc.imaging` and `titokc.tiling` make the model's square inputs, `titokc.weights` finds the model,
`titokc.inference` runs it, and `titokc.pipeline` takes one picture and many through it on the same path. torch is
imported when the first picture reaches a model, so that what cannot be decoded is refused without it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO

from titokc.container import (
    CUSTOM_MODEL_ID,
    FINGERPRINT_SIZE,
    MAX_FILE_SIZE,
    Header,
    file_size,
    pack,
    unpack,
)
from titokc.errors import (
    LimitExceededError,
    ModelMismatchError,
    ModelNotFoundError,
    UsageError,
)
from titokc.files import read_bytes
from titokc.limits import DEFAULT_LIMITS, Limits
from titokc.payload import check_indices, pack_bare, to_text, unpack_bare, unpack_text
from titokc.pipeline import Job, run

if TYPE_CHECKING:
    from PIL import Image

    from titokc.imaging import Background
    from titokc.models.interface import Tokenizer
    from titokc.tiling import Grid

    Picture = Image.Image | str | os.PathLike[str] | bytes | BinaryIO
    TokFile = bytes | str | os.PathLike[str]

DEFAULT_MODEL = "nano"
DEFAULT_BATCH_SIZE = 8
DEFAULT_EFFORT = 8
FORMS = ("tok", "bare", "base64")
# How many pairs of grid and token count a byte budget is searched over.
CANDIDATES = 8


class Codec:
    """Encodes and decodes pictures; the model is loaded once, when it is first needed.

    model: a known name or a model directory. By default `encode` uses "nano", and `decode` the model that the file
        names. With a model given, files of any other are refused.
    tokenizer: a loaded model instead of a name, on the device where it is.
    device: "auto" (CUDA, MPS or CPU, the first there is), "cpu", "cuda", "cuda:1", "mps".
    dtype: of the decoder ("float32", "bfloat16", "float16"); by default float32, on CUDA bfloat16 or float16.
        Tokens are always made in float32.
    batch_size: tiles that go through the model together. threads: of the CPU (torch's own number by default).
    limits: pictures beyond these are refused, on both sides.

    On one machine the tokens of a picture depend on nothing else: not on what is encoded beside it, nor on `threads`
    (see `titokc.inference.encode_tiles`; on devices other than the CPU they may depend on `batch_size`).
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        device: str = "auto",
        dtype: str | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        threads: int | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        if model is not None and tokenizer is not None:
            raise UsageError("give a model's name or a loaded tokenizer, not both")
        if batch_size < 1 or (threads is not None and threads < 1):
            raise UsageError("batch size and threads are at least 1")
        self.model = model
        self.batch_size = batch_size
        self.limits = limits
        self.device = device
        self.dtype = dtype
        self.threads = threads
        self._given = tokenizer
        self._loaded: dict[str | os.PathLike[str], Tokenizer] = {}

    @property
    def tokenizer(self) -> Tokenizer:
        """The model that encodes."""
        return self._load(self.model or DEFAULT_MODEL) if self._given is None else self._given

    def encode(self, picture: Picture, **options: Any) -> bytes:
        """A picture (a Pillow image, a path, a file's bytes or an open binary file) -> the bytes of its `.tok` file.

        `options` are those of `encode_many`.
        """
        return next(self.encode_many([picture], **options))

    def decode(self, data: TokFile, **options: Any) -> Image.Image:
        """A `.tok` file's bytes, or its path -> an RGB picture. `options` are those of `decode_many`."""
        return next(self.decode_many([data], **options))

    def encode_many(
        self,
        pictures: Iterable[Picture],
        *,
        tokens: int | None = None,
        tiles: str | Grid | None = None,
        target_size: int | None = None,
        effort: int = DEFAULT_EFFORT,
        background: Background = "white",
        form: str = "tok",
        return_errors: bool = False,
    ) -> Iterator[Any]:
        """Pictures -> `.tok` bytes, in order, while the input is still being read.

        tokens: per tile, of those that the model can make; by default its most.
        tiles: "1x1" (the default: the whole picture in one square), "RxC", "auto", or (rows, columns).
        target_size: a budget in bytes: grid and tokens, where not given, are those whose decoded picture is nearest to
            the original (PSNR) among those that fit; the result is never larger.
        effort: rounds of search for tokens that decode to something nearer, each a few times as long as a decoding; 0
            takes the nearest tokens. Models that cannot search take no notice.
        background: the colour under transparent pixels.
        form: "tok", "bare" (the payload alone, without header and checksum) or "base64" (that as base64url text).
        return_errors: yield a picture's TitokcError in its place instead of raising it. What concerns all pictures (no
            such model, no such number of tokens) is raised all the same.
        """
        _check_form(form)
        if effort < 0:
            raise UsageError(f"effort {effort}: expected 0 or more")

        def read(picture: Picture) -> Image.Image:
            from PIL import Image

            from titokc import imaging

            if isinstance(picture, Image.Image):
                return imaging.to_rgb(picture, background=background, limits=self.limits)
            return imaging.read(picture, background=background, limits=self.limits)

        def start(image: Image.Image) -> Job:
            from titokc import tiling

            tokenizer = self.tokenizer
            grid = None if tiles is None else tiling.parse_grid(tiles, image.size, tokenizer.side)
            if target_size is None:
                header = _header(tokenizer, image.size, grid or (1, 1), tokens or tokenizer.max_tokens)
            else:
                header = self._best_header(image, grid, tokens, target_size, form)
            file_size(header)  # refuses here what the container cannot hold
            if header.tiles * header.tokens_per_tile > self.limits.max_indices:
                raise LimitExceededError(
                    f"{header.rows}x{header.columns} tiles of {header.tokens_per_tile} tokens: "
                    f"the limit is {self.limits.max_indices} tokens in all",
                    "max_indices",
                )

            def finish(codes: list[list[int]]) -> bytes:
                indices = [index for position in zip(*codes, strict=True) for index in position]
                if form == "tok":
                    return pack(header, indices)
                payload = pack_bare(indices, header.bits_per_index)
                return payload if form == "bare" else to_text(payload).encode("ascii")

            inputs = tiling.cut(image, (header.rows, header.columns), tokenizer.side)
            return Job((tokenizer, header.tokens_per_tile, effort), header.tiles, inputs, finish)

        def check() -> None:
            _check_tokens(self.tokenizer, tokens)

        return run(pictures, read, check, start, self._encode_tiles, self.batch_size, return_errors)

    def decode_many(
        self,
        files: Iterable[TokFile],
        *,
        size: tuple[int, int] | None = None,
        partial: bool = False,
        form: str = "tok",
        tiles: str | Grid = "1x1",
        return_errors: bool = False,
    ) -> Iterator[Any]:
        """`.tok` files (their bytes or paths) -> RGB pictures, in order.

        size: (width, height) of the result instead of the original's.
        partial: accept files that were cut short anywhere after the header, and decode what is there.
        form: "tok", or "bare" and "base64" for a payload of this codec's model. The number of tokens then follows from
            its length; `size` (default: the model's own square) and `tiles` are what the encoder had.
        return_errors: yield a file's TitokcError in its place instead of raising it.
        """
        _check_form(form)

        def read(source: TokFile) -> tuple[Header, list[int]] | bytes:
            data = source if isinstance(source, bytes) else read_bytes(source, MAX_FILE_SIZE)
            if form == "tok":
                return unpack(data, partial=partial, limits=self.limits)
            return data

        def start(content: tuple[Header, list[int]] | bytes) -> Job:
            from titokc import imaging, tiling

            if isinstance(content, bytes):
                content = self._unpack_bare(content, form, size, tiles, partial)
            header, indices = content
            target = size or (header.width, header.height)
            imaging.check_limits(target, self.limits)
            grid = tiling.parse_grid((header.rows, header.columns), target, 0)
            boxes = tiling.boxes(target, grid)
            tokenizer = self._tokenizer_for(header)
            check_indices(indices, tokenizer.codebook_size)
            return Job(
                (tokenizer, header.tokens_per_tile),
                header.tiles,
                inputs=(indices[tile :: header.tiles] for tile in range(header.tiles)),
                finish=lambda decoded: tiling.assemble(decoded, grid, target),
                # As soon as it is decoded, so that many tiles take no more memory than the picture.
                collect=lambda tile, n: tiling.fit(tile, (boxes[n][2] - boxes[n][0], boxes[n][3] - boxes[n][1])),
            )

        def check() -> None:
            if form != "tok" or self.model is not None:
                _ = self.tokenizer

        return run(files, read, check, start, self._decode_codes, self.batch_size, return_errors)

    def _best_header(
        self, image: Image.Image, grid: Grid | None, tokens: int | None, target_size: int, form: str
    ) -> Header:
        """Of at most CANDIDATES grids, each with the tokens that fill the budget, the one that loses least."""
        from titokc import tiling

        tokenizer = self.tokenizer
        bits = tokenizer.bits_per_index
        fewest, most = (tokens, tokens) if tokens else (tokenizer.min_tokens, tokenizer.max_tokens)

        def size_of(grid: Grid, tokens: int) -> int:
            header = _header(tokenizer, image.size, grid, tokens)
            if form == "tok":
                return file_size(header)
            return header.payload_bytes if form == "bare" else -(-header.payload_bytes * 4 // 3)

        smallest = size_of(grid or (1, 1), fewest)
        if smallest > target_size:
            raise UsageError(
                f"a budget of {target_size} bytes is too small: "
                f"the smallest file of this picture with {tokenizer.name} has {smallest}"
            )
        if grid:
            grids = [grid]
        else:
            grids = tiling.candidate_grids(
                image.size,
                tokenizer.side,
                max(1, target_size * 8 // (bits * most)),
                max(1, target_size * 8 // (bits * fewest)),
                lambda grid: size_of(grid, fewest) <= target_size,
                CANDIDATES,
            )
        fitting = [(grid, max(n for n in range(fewest, most + 1) if size_of(grid, n) <= target_size)) for grid in grids]

        import numpy as np

        from titokc.judge.pixels import psnr

        def quality(candidate: tuple[Grid, int]) -> float:
            grid, tokens = candidate
            data = self.encode(image, tokens=tokens, tiles=grid, effort=0)
            return psnr(np.asarray(image), np.asarray(self.decode(data)))

        best = fitting[0] if len(fitting) == 1 else max(fitting, key=quality)
        return _header(tokenizer, image.size, *best)

    def _unpack_bare(
        self, data: bytes, form: str, size: tuple[int, int] | None, tiles: str | Grid, partial: bool
    ) -> tuple[Header, list[int]]:
        from titokc import tiling

        tokenizer = self.tokenizer
        size = size or (tokenizer.side, tokenizer.side)
        unpack_payload = unpack_bare if form == "bare" else unpack_text
        indices = unpack_payload(data, tokenizer.bits_per_index, partial=partial, limits=self.limits)
        grid = tiling.parse_grid(tiles, size, tokenizer.side)
        tokens, rest = divmod(len(indices), grid[0] * grid[1])
        if rest and not partial:
            raise UsageError(f"{len(indices)} tokens do not share out among {grid[0]}x{grid[1]} tiles")
        fewest = 1 if tokenizer.nested or partial else tokenizer.min_tokens
        if not fewest <= tokens <= tokenizer.max_tokens:
            raise UsageError(
                f"{len(data)} bytes are {tokens} tokens a tile, "
                f"expected {fewest}..{tokenizer.max_tokens} for {tokenizer.name}"
            )
        header = _header(tokenizer, size, grid, tokens)
        return header, indices[: tokens * header.tiles]

    def _tokenizer_for(self, header: Header) -> Tokenizer:
        """The model of a file; refuses one of another code than the file's."""
        if self._given is None and self.model is None:
            for loaded in self._loaded.values():
                if _made(loaded, header):
                    return loaded
            name: str | os.PathLike[str] | None = header.model
            if header.model_id == CUSTOM_MODEL_ID:
                from titokc import weights

                fitting = weights.find(header.fingerprint)
                name = next((folder for folder in fitting if _made(self._load(folder), header)), None)
            if name is None:
                raise ModelNotFoundError(
                    f"the file was made with a custom model (code {header.fingerprint.hex()}...) that is "
                    "not installed: give it with --model, or install it with `titokc models install`"
                )
            tokenizer = self._load(name)
        else:
            tokenizer = self.tokenizer
        if not _made(tokenizer, header):
            raise ModelMismatchError(
                f"the file was made with {header.model} (code {header.fingerprint.hex()}...), "
                f"the model at hand is {tokenizer.name} (code {tokenizer.fingerprint.hex()[:16]}...)"
            )
        return tokenizer

    def _load(self, name: str | os.PathLike[str]) -> Tokenizer:
        if name not in self._loaded:
            import torch

            from titokc import inference, weights

            if self.threads:
                torch.set_num_threads(self.threads)
            device = inference.find_device(self.device)
            tokenizer = weights.load(name, device=str(device))
            if device.type == "cuda":
                tokenizer.to(memory_format=torch.channels_last)
            self._loaded[name] = tokenizer
        return self._loaded[name]

    def _encode_tiles(self, key: tuple[Tokenizer, int, int], tiles: list[Image.Image]) -> list[list[int]]:
        from titokc import inference

        tokenizer, tokens, effort = key
        return inference.encode_tiles(tokenizer, tiles, tokens, effort, self.batch_size)

    def _decode_codes(self, key: tuple[Tokenizer, int], codes: list[list[int]]) -> list[Image.Image]:
        from titokc import inference

        tokenizer, _ = key
        return inference.decode_codes(tokenizer, codes, inference.find_dtype(self.dtype, tokenizer.device))


def _check_tokens(tokenizer: Tokenizer, tokens: int | None) -> None:
    if tokens is not None and not tokenizer.min_tokens <= tokens <= tokenizer.max_tokens:
        fewest, most = tokenizer.min_tokens, tokenizer.max_tokens
        expected = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        raise UsageError(f"{tokens} tokens: {tokenizer.name} makes {expected}")


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise UsageError(f"form {form!r}: expected one of {', '.join(FORMS)}")


def _header(tokenizer: Tokenizer, size: tuple[int, int], grid: Grid, tokens: int) -> Header:
    return Header(
        *size,
        *grid,
        tokens_per_tile=tokens,
        bits_per_index=tokenizer.bits_per_index,
        model_id=tokenizer.model_id,
        fingerprint=tokenizer.fingerprint[:FINGERPRINT_SIZE],
        nested=tokenizer.nested,
    )


def _made(tokenizer: Tokenizer, header: Header) -> bool:
    """Whether this model has the code that the file was made with, as far as its header tells."""
    return (
        tokenizer.fingerprint[:FINGERPRINT_SIZE] == header.fingerprint
        and tokenizer.bits_per_index == header.bits_per_index
        and tokenizer.max_tokens >= header.tokens_per_tile
    )


@lru_cache(maxsize=4)
def _shared(model: str | None, device: str) -> Codec:
    return Codec(model, device=device)


def encode(picture: Picture, *, model: str | None = None, device: str = "auto", **options: Any) -> bytes:
    """A picture (a Pillow image, a path, a file's bytes or an open binary file) -> the bytes of its `.tok` file.

    model, device: see `Codec`; the model stays loaded for the next call. `options`: see `Codec.encode_many`.
    """
    return _shared(model, device).encode(picture, **options)


def decode(data: TokFile, *, model: str | None = None, device: str = "auto", **options: Any) -> Image.Image:
    """A `.tok` file's bytes, or its path -> an RGB picture of the original's size.

    model, device: see `Codec`; the model stays loaded for the next call. `options`: see `Codec.decode_many`.
    """
    return _shared(model, device).decode(data, **options)
