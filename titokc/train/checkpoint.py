"""Checkpoints of a run: folders of safetensors and JSON that appear whole or not at all; no pickle.

`RUN/checkpoints/step-00001000/` holds one safetensors file a part (tokenizer, average, optimisers, random state) and
state.json. The last two and the best are kept. `titokc.train.loop` decides what goes in.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from titokc.errors import WeightsError

Parts = dict[str, dict[str, Tensor]]


def save(run: Path, step: int, parts: Parts, state: dict[str, Any], keep: set[int]) -> Path:
    """Writes the checkpoint of `step`, then deletes all but the last two and those of the steps in `keep`."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for litter in folder.glob(".part-*"):
        shutil.rmtree(litter)
    part, final = folder / f".part-{step:08d}", folder / f"step-{step:08d}"
    part.mkdir()
    for name, tensors in parts.items():
        contiguous = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
        save_file(contiguous, part / f"{name}.safetensors")
    (part / "state.json").write_text(json.dumps(state, indent=1) + "\n")
    for path in (*part.iterdir(), part):
        _sync(path)
    if final.exists():
        discard(final)
    part.rename(final)
    _sync(folder)
    for old in saved(run)[:-2]:
        if step_of(old) not in keep:
            discard(old)
    return final


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def discard(folder: Path) -> None:
    """Deletes a checkpoint; one that is killed half-way leaves no half checkpoint behind under its name."""
    doomed = folder.with_name(f".part-{folder.name}")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def saved(run: Path) -> list[Path]:
    """The run's complete checkpoints, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def load(folder: Path) -> tuple[Parts, dict[str, Any]]:
    """(parts, state) of a checkpoint; WeightsError if a file in it is damaged."""
    try:
        parts = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
        return parts, json.loads((folder / "state.json").read_text())
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{folder}: damaged checkpoint ({error})") from error


def fill(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copies `tensors` into the module's own; WeightsError names the first that are missing, extra or misshapen."""
    own = module.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in tensors]
    wrong += [f"{name} is not in this model" for name in tensors if name not in own]
    wrong += [
        f"{name} is {list(tensors[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise WeightsError(f"{source}: does not fit the recipe's model: {wrong[0]}{more}")
    module.load_state_dict(tensors)
