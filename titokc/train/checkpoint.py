"""Checkpoints of a run: folders of safetensors and JSON that appear whole or not at all (`titokc.files`); no pickle.

`RUN/checkpoints/step-00001000/` holds one safetensors file a part (tokenizer, average, optimisers, random state) and
state.json, which says their SHA-256 too. The last two and the best are kept. `titokc.train.loop` decides what goes in.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from titokc.errors import OutputError, UsageError, WeightsError
from titokc.files import LITTER, sha256, staged
from titokc.weights.tensors import check_fit


class DamagedCheckpointError(WeightsError):
    """A checkpoint's file cannot be read back."""


Parts = dict[str, dict[str, Tensor]]


def save(run: Path, called: str, parts: Parts, state: dict[str, Any], keep: set[int]) -> Path:
    """Writes a checkpoint, called as `name_of` says, then deletes all but the last two and those of the steps in
    `keep`. Raises OutputError, and then what was there before is there again."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for litter in (*folder.glob(".part-*"), *folder.glob(LITTER)):
        shutil.rmtree(litter)
    final, before = folder / called, folder / f".part-{called}"
    if final.exists():
        final.rename(before)
    try:
        with staged(final) as part:
            for key, tensors in parts.items():
                contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
                save_file(contiguous, part / f"{key}.safetensors")
            state = state | {"files": {key: sha256(part / f"{key}.safetensors") for key in parts}}
            (part / "state.json").write_text(json.dumps(state, indent=1, allow_nan=False) + "\n")
    except BaseException as error:
        if before.exists():
            before.rename(final)
        if isinstance(error, SafetensorError):
            raise OutputError(f"{final} cannot be written: {error}") from error
        raise
    shutil.rmtree(before, ignore_errors=True)
    for old in saved(run)[:-2]:
        if step_of(old) not in keep:
            discard(old)
    return final


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Holds a folder, which is made if need be; while another process does, a UsageError, or with `wait` patience."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        with suppress(ImportError):  # Windows has no fcntl; there nothing stops a second process
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UsageError(f"{folder}: another process is training in this folder") from error
        yield


def name_of(step: int, fitted: int | None = None) -> str:
    """Of the checkpoint of a step, or of a fit that is so far."""
    return f"step-{step:08d}" if fitted is None else f"fit-{fitted:08d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint, -1 during a fit."""
    kind, _, number = folder.name.partition("-")
    return int(number) if kind == "step" else -1


def discard(folder: Path) -> None:
    """Deletes a checkpoint; one that is killed half-way leaves no half checkpoint behind under its name."""
    doomed = folder.with_name(f".part-{folder.name}")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def saved(run: Path) -> list[Path]:
    """The run's complete checkpoints, oldest first."""
    folder = run / "checkpoints"
    return sorted(folder.glob("fit-*")) + sorted(folder.glob("step-*"))


def load(folder: Path, only: str = "*") -> tuple[Parts, dict[str, Any]]:
    """(parts, or `only` one of them, state) of a checkpoint; DamagedCheckpointError if one is not what was written."""
    try:
        state = json.loads((folder / "state.json").read_text())
        files = {folder / f"{part}.safetensors": digest for part, digest in state.pop("files").items()}
        wanted = [path for path in sorted(files) if only in {"*", path.stem}]
        if changed := [path.name for path in wanted if sha256(path) != files[path]]:
            raise ValueError(f"{changed[0]} is not what was written")
        return {path.stem: load_file(path) for path in wanted}, state
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{folder}: damaged checkpoint ({error})") from error


def fill(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copies `tensors` into the module's own; WeightsError names what is missing, extra or misshapen."""
    check_fit(module.state_dict(), tensors, source)
    module.load_state_dict(tensors)
