"""A model directory from a run: the averaged weights of its best or its last checkpoint."""

from pathlib import Path

from titokc import weights
from titokc.errors import InputError
from titokc.train import checkpoint
from titokc.train.recipes import schema
from titokc.train.start import build


def export(run: Path, directory: Path, last: bool = False, bits: int = 32, overwrite: bool = False) -> int:
    """Writes what `titokc.weights.load` takes into `directory` and returns the step of the checkpoint.

    The best checkpoint is the one with the lowest validation loss in the latest phase that has been validated; a run
    without any validation gives its last one. bits, overwrite: as for `titokc.weights.save`.
    """
    folders = checkpoint.saved(run)
    if not folders:
        raise InputError(f"{run}: no run of titokc train, there are no checkpoints in it")
    recipe = schema.from_json((run / "recipe.json").read_text(), run / "recipe.json")
    folder = folders[-1]
    parts, state = checkpoint.load(folder, only="average")
    if checkpoint.step_of(folder) < 0:
        raise InputError(f"{run}: its tokenizer is still being fitted: continue with titokc train --resume")
    if not last and (best := next((f for f in folders if checkpoint.step_of(f) == state["best_step"]), None)):
        folder = best
        parts, _ = checkpoint.load(folder, only="average")
    tokenizer = build(recipe)
    checkpoint.fill(tokenizer, parts["average"], folder)
    weights.save(tokenizer, directory, bits=bits, overwrite=overwrite)
    return checkpoint.step_of(folder)
