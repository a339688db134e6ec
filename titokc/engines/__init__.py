"""The engines that run models: `open` chooses one. `titokc.engines.base` says what an engine is; no torch here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from titokc import weights
from titokc.errors import ModelNotFoundError, UsageError
from titokc.weights.places import locate

if TYPE_CHECKING:
    from titokc.engines.base import Engine
    from titokc.models.interface import Tokenizer

ENGINES = ("auto", "light", "torch")
DEFAULT_BATCH_SIZE = 8


def open(
    model: str | os.PathLike[str] | Tokenizer,
    device: str = "auto",
    engine: str = "auto",
    *,
    dtype: str | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    threads: int | None = None,
) -> Engine:
    """The engine for a model: a name, a path (as `titokc.weights.load` takes it), or a loaded tokenizer.

    device: "auto" (for torch: CUDA, MPS or CPU, the first there is), "cpu", "cuda", "cuda:1" or "mps"; a loaded
        tokenizer stays where it is.
    engine: "light" (nano on the CPU, without torch), "torch", or "auto": light where it can, unless another device or
        precision is asked for.
    dtype: of torch's decoder ("float32", "bfloat16", "float16"); by default bfloat16 where the processor or GPU has it.
    batch_size: tiles that go through a GPU together. threads: of the CPU; by default all that torch would use.

    Raises UsageError for a device or an engine that is not there, and what `titokc.weights.load` raises.
    """
    if engine not in ENGINES:
        raise UsageError(f"engine {engine!r}: expected one of {', '.join(ENGINES)}")
    if engine != "torch" and isinstance(model, (str, os.PathLike)) and device in {"auto", "cpu"}:
        from titokc.engines import light

        files = locate(model)
        if light.reads(files) and dtype in {None, "float32"}:
            return light.load(files, threads)
    if engine == "light":
        raise UsageError("engine 'light' runs nano from its files, in float32 and on the CPU: expected auto or torch")
    try:
        from titokc.engines.torch import TorchEngine, find_device
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModelNotFoundError(
            f"only nano runs without torch, in float32 on the CPU; for {model}: pip install 'titokc[torch]'"
        ) from error

    if isinstance(model, (str, os.PathLike)):
        model = weights.load(model, str(find_device(device)))
    return TorchEngine(model, dtype=dtype, batch_size=batch_size, threads=threads)
