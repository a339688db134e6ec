"""From the options of `titokc train` to a running `titokc.train.loop.Trainer`: recipe, data, tokenizer, device."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from titokc.errors import InputError, UsageError
from titokc.models.interface import Tokenizer
from titokc.train import checkpoint, recipes
from titokc.train.data import ImageSet, Source, find
from titokc.train.log import RunLog
from titokc.train.loop import Trainer
from titokc.train.recipes import Recipe


def start(
    data: Path,
    run: Path,
    *,
    name: str | None = None,
    settings: tuple[str, ...] = (),
    resume: bool = False,
    init_from: Path | None = None,
    max_minutes: float | None = None,
    steps: int | None = None,
    val: Path | None = None,
    cache: Path | None = None,
    cache_gib: float = 8.0,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    workers: int = 1,
    quiet: bool = False,
    say: Callable[[str], None],
) -> None:
    """One `titokc train`; `say` takes one-line messages for the person."""
    if threads:
        torch.set_num_threads(threads)
    begun = bool(checkpoint.saved(run))
    if begun and not resume:
        raise UsageError(f"{run} holds a run already: continue it with --resume, or choose another folder")
    run.mkdir(parents=True, exist_ok=True)
    recipe = choose_recipe(run, name, settings, begun, max_minutes, steps)
    place = choose_device(device)
    folder = cache or run / "cache"
    training, validation = image_sets(data, val, recipe, folder, cache_gib, quiet, say)
    tokenizer = build(recipe).to(place)
    (run / "recipe.json.part").write_text(recipes.to_json(recipe))
    (run / "recipe.json.part").replace(run / "recipe.json")
    log = RunLog(run, say, quiet)
    trainer = Trainer(recipe, tokenizer, training, run, validation, log, choose_dtype(dtype, place), workers)
    if begun:
        trainer.resume()
        spent = f"{trainer.progress:.0%} of the budget" if trainer.progress < 1 else "the budget is spent: raise it"
        log.message(f"resuming at step {trainer.state.step}, {spent}", trainer.state.step)
    elif init_from is not None:
        initialise_from(tokenizer, init_from)
    try:
        trainer.run()
    finally:
        log.close()


def choose_recipe(
    run: Path, name: str | None, settings: tuple[str, ...], begun: bool, minutes: float | None, steps: int | None
) -> Recipe:
    """The run's own recipe if it has begun, else the named preset, with the settings and the budget applied."""
    if begun:
        saved = recipes.from_json((run / "recipe.json").read_text())
        if name not in {None, saved.name}:
            raise UsageError(f"{run} is a run of the recipe {saved.name}, not {name}")
        recipe = recipes.override(saved, settings)
        if recipe.model != saved.model:
            raise UsageError(f"{run}: --set cannot change the model of a run that has begun")
    elif name is None:
        raise UsageError("a new run needs --recipe NAME")
    else:
        recipe = recipes.override(recipes.named(name), settings)
    if minutes is not None or steps is not None:
        recipe = replace(recipe, minutes=minutes or 0.0, steps=steps or 0)
    return recipe


def choose_device(device: str) -> torch.device:
    """The device by name; auto takes CUDA if there is one, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {device}: {str(error).splitlines()[0]}") from error


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The autocast type; auto is bfloat16 where the hardware has it, float16 on older GPUs, float32 on older CPUs."""
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    has_bfloat16 = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.bfloat16 if has_bfloat16 else torch.float32


def image_sets(
    data: Path,
    val: Path | None,
    recipe: Recipe,
    folder: Path,
    cache_gib: float,
    quiet: bool,
    say: Callable[[str], None],
) -> tuple[ImageSet, ImageSet | None]:
    """(training, validation) sets; without a validation folder or shard every 50th image is held out, at most 1000."""
    sources, held_out = find(data)
    if not sources:
        raise InputError(f"{data}: no images in it")
    if val is not None:
        found, more = find(val)
        held_out = found + more
        if not held_out:
            raise InputError(f"--val {val}: no images in it")
    elif not held_out and len(sources) >= 100:
        step = max(50, len(sources) // 1000)
        held_out = sources[::step]
        sources = [source for at, source in enumerate(sources) if at % step]
    side = max(view.side for phase in recipe.phases for view in phase.views)

    def progress(items: list[Source]) -> tqdm:
        return tqdm(items, desc="decoding", unit="image", leave=False, disable=True if quiet else None)

    sets = [
        ImageSet(group, side * 9 // 8, folder, int(cache_gib * 2**30), 2, progress) if group else None
        for group in (sources, held_out)
    ]
    for images in sets:
        if images is not None and images.unreadable:
            names = ", ".join(images.unreadable[:5]) + (", ..." if len(images.unreadable) > 5 else "")
            say(f"skipped {len(images.unreadable)} unreadable images: {names}")
    training, validation = sets
    if training is None or len(training) == 0:
        raise InputError(f"{data}: none of its {len(sources)} images can be read")
    say(f"{len(training)} training images, {len(validation) if validation else 0} validation images")
    return training, validation if validation else None


def build(recipe: Recipe) -> Tokenizer:
    """An untrained tokenizer of the recipe's configuration."""
    torch.manual_seed(recipe.seed)
    from titokc.models.nano import NanoTokenizer

    return NanoTokenizer(recipe.model)


def initialise_from(tokenizer: Tokenizer, path: Path) -> None:
    """Takes over the weights of a model directory or safetensors file; they must fit exactly."""
    from safetensors.torch import load_file

    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"--init-from {path}: no such weights")
    checkpoint.fill(tokenizer, load_file(file), file)
