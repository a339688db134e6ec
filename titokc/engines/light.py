"""The engine of nano on CPUs, in NumPy alone: a process that encodes or decodes one picture need not wait for torch.

`titokc.models.nano.code_numpy` and `titokc.models.nano.numpy` are the model; the search is that of
`titokc.models.nano.tokenizer`. No torch here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from titokc.errors import UsageError, WeightsError
from titokc.ids import KNOWN_MODELS
from titokc.models import EMBEDDED, EMBEDDED_FILE
from titokc.models.nano.code_numpy import Code, check, tensors_of
from titokc.models.nano.config import CODE_VERSION, NanoConfig
from titokc.models.nano.natural_numpy import Generator
from titokc.models.nano.numpy import Decoder, Transform, pixels, planes
from titokc.models.nano.search import SEARCHES, distortions, search
from titokc.models.shared import Shared
from titokc.weights import arrays
from titokc.weights.fingerprint import line, of_code
from titokc.weights.places import noted

if TYPE_CHECKING:
    from titokc.models.info import ModelInfo
    from titokc.weights.places import ModelFiles

T = TypeVar("T")

# Of so many searches the results are kept: a budget's nearest grids are searched for longer, and the first of several
# searches is then one that has been made.
_KEPT_SEARCHES = 48


class LightEngine:
    """See `titokc.engines.base.Engine`.

    Tiles are worked on side by side, each by one thread from beginning to end, so that neither what is coded beside a
    tile nor the number of threads makes a difference. A product has one thread too: more of them save a tenth on idle
    processors and take three times as long on busy ones.
    """

    def __init__(
        self, config: NanoConfig, tensors: dict[str, np.ndarray], info: ModelInfo, threads: int | None
    ) -> None:
        self.info = info
        self.width = threads or _processors()
        self._config, self._tensors = config, tensors
        self._code = Code(config, tensors)
        self._transform = Transform(config, tensors["coded"])
        self._pools: dict[int, ThreadPoolExecutor] = {}
        self._searched = lru_cache(_KEPT_SEARCHES)(self._search)

    @cached_property
    def _decoder(self) -> Decoder:
        return self._made(Decoder, "decoder", self._transform)

    @cached_property
    def _generator(self) -> Generator:
        return self._made(Generator, "natural")

    def _made(self, kind: Callable[..., T], part: str, *more: Any) -> T:
        """A part of the model, of its tensors."""
        try:
            return kind(self._config, lambda name, *s: arrays.expanded(self._tensors, f"{part}.{name}", *s), *more)
        except (KeyError, ValueError) as error:
            raise WeightsError(f"{self.info.name}: the tensors do not fit the configuration: {error}") from error

    def encode(
        self, tiles: Sequence[np.ndarray], counts: Sequence[int], effort: int, tune: str = "psnr"
    ) -> list[np.ndarray]:
        if tune != "psnr":
            raise UsageError(f"tune {tune!r} needs torch: pip install 'titokc[train]', and engine 'torch'")
        if effort:
            _ = self._decoder  # once, not in each thread
        return self._side_by_side(partial(self._encode, effort=effort), tiles, counts)

    def decode(self, tokens: Sequence[np.ndarray], look: str) -> list[np.ndarray]:
        assert look in self.info.looks
        _ = self._decoder, look == "natural" and self._generator  # once, not in each thread
        return self._side_by_side(partial(self._decode, look=look), tokens)

    def distortions(self, tiles: Sequence[np.ndarray], tokens: int) -> list[np.ndarray]:
        return self._side_by_side(lambda tile: distortions(self._code, self._transform, planes(tile), tokens), tiles)

    def _encode(self, tile: np.ndarray, tokens: int, effort: int) -> np.ndarray:
        if not effort:
            return self._code.assign(self._transform.analyse(planes(tile)), tokens)[0]
        rounds, steps = SEARCHES[effort]
        found = [self._searched(tile.tobytes(), tokens, rounds, step) for step in steps]
        return min(found, key=lambda each: each[0])[1].copy()

    def _search(self, tile: bytes, tokens: int, rounds: int, step: float) -> tuple[float, np.ndarray]:
        picture = planes(np.frombuffer(tile, np.uint8).reshape(self.info.side, self.info.side, 3))
        own = self._transform.analyse(picture)
        return search(self._code, self._decoder, picture, own, tokens, rounds, step)

    def _decode(self, tokens: np.ndarray, look: str) -> np.ndarray:
        picture, features, _ = self._decoder(self._code.lookup(tokens), len(tokens))
        return pixels(self._generator(picture, features, tokens) if look == "natural" else picture)

    def _side_by_side(self, work: Callable[..., T], rows: Sequence[np.ndarray], *more: Sequence[int]) -> list[T]:
        # The command line sets this before NumPy is imported, which is faster than to find the library afterwards.
        is_set = os.environ.get("OPENBLAS_NUM_THREADS") == "1"
        with nullcontext() if is_set else _one_thread_a_product:
            return [*(map if len(rows) == 1 else self._pool.map)(work, rows, *more)]

    @property
    def _pool(self) -> ThreadPoolExecutor:
        """The threads of this process: a fork takes none of them along."""
        process = os.getpid()
        if process not in self._pools:
            self._pools = {process: ThreadPoolExecutor(self.width, "titokc")}
        return self._pools[process]


def reads(files: ModelFiles) -> bool:
    """Whether this engine runs the model in these files."""
    return files.weights.suffix == ".safetensors" and (files.read_config() or {}).get("architecture") == "nano"


def load(files: ModelFiles, threads: int | None = None) -> LightEngine:
    """The engine for the model in files that `titokc.weights.locate` has found. Raises WeightsError.

    Its code is verified. Of the decoder's weights, which say nothing of what tokens mean, names, types and shapes are:
    their fingerprint takes longer than to decode a picture (`titokc doctor` and `titokc models verify` look at it).
    """
    tensors = arrays.read(files.weights)
    config = NanoConfig.from_dict(files.read_config(), {})
    found, written = _code_fingerprint(config, tensors, files.weights), noted(files.weights)
    if written.get("code", found.hex()) != found.hex():
        raise WeightsError(f"{files.weights}: the code is {found.hex()}, the file was written as {written['code']}")
    known = next((row.id for row in KNOWN_MODELS.values() if row.code == found.hex()), 0)
    if not known:
        try:
            check(config, tensors)
        except WeightsError as error:
            raise WeightsError(f"{files.weights}: {error}") from error
    name = EMBEDDED if files.weights == EMBEDDED_FILE else files.name
    info = replace(config.info, name=name, id=known, code=found, weights=bytes.fromhex(written.get("weights", "")))
    return LightEngine(config, tensors, info, threads)


def _code_fingerprint(config: NanoConfig, tensors: dict[str, np.ndarray], source: Path) -> bytes:
    lines = []
    for name, (kind, shape) in tensors_of(config).items():
        tensor = tensors.get(name)
        if tensor is None or (str(tensor.dtype), tensor.shape) != (kind, shape):
            found = "missing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
            raise WeightsError(f"{source}: {name} is {found}, expected {kind} {shape}")
        lines.append(line(name, kind, shape, np.ascontiguousarray(tensor).data.cast("B")))
    return of_code(config.architecture, CODE_VERSION, config.code_fields, lines)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


# The number of threads of NumPy's BLAS is the whole process's.
_one_thread_a_product = Shared(lambda: _blas().limit(limits=1))
