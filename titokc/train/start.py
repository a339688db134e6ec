"""From the options of `titokc train` to a running `titokc.train.loop.Trainer`: recipe, data, tokenizer, device."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from titokc import inference, models, weights
from titokc.errors import InputError, UsageError
from titokc.files import write_atomic
from titokc.models.interface import Tokenizer
from titokc.train import checkpoint, presets, recipes
from titokc.train.data import ImageSet, Source, find
from titokc.train.distributed import Group, local_device
from titokc.train.estimate import estimate
from titokc.train.log import RunLog
from titokc.train.loop import Trainer
from titokc.train.proxy import give_pixel_decoder, load_vqgan
from titokc.train.recipes import Recipe
from titokc.weights import places


def start(
    data: Path,
    run: Path,
    *,
    name: str | None = None,
    settings: tuple[str, ...] = (),
    resume: bool = False,
    init_from: Path | None = None,
    vqgan: Path | None = None,
    max_minutes: float | None = None,
    steps: int | None = None,
    val: Path | None = None,
    cache: Path | None = None,
    cache_gib: float = 8.0,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
    quiet: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None],
) -> None:
    """One `titokc train`; `say` takes one-line messages for the person."""
    if threads:
        torch.set_num_threads(threads)
    begun = bool(checkpoint.saved(run))
    if begun and not resume:
        raise UsageError(f"{run} holds a run already: continue it with --resume, or choose another folder")
    initial = None if init_from is None or begun else weights.load_files(places.locate(init_from))
    recipe = choose_recipe(run, name, settings, initial, begun)
    if max_minutes is not None or steps is not None:
        recipe = replace(recipe, minutes=max_minutes or 0.0, steps=steps or 0)
    place = local_device(inference.find_device(device))
    if dry_run:
        tokenizer = build(recipe).to(place)
        for line in estimate(recipe, tokenizer, choose_dtype(dtype, place), int(os.environ.get("WORLD_SIZE", 1))):
            say(line)
        if initial is None and not begun and tokenizer.fit_steps:
            say("before that its quantiser is fitted to training images, 10 to 20 minutes on two cores")
        return
    group = Group.join(place)
    log = None
    try:
        with checkpoint.locked(run) if group.first else nullcontext():
            if group.first:
                write_atomic(run / "recipe.json", recipes.to_json(recipe).encode())
                log = RunLog(run, say, quiet)
            tokenizer = build(recipe).to(place)
            if initial is not None:
                checkpoint.fill(tokenizer, initial.state_dict(), Path(init_from or ""))
            folder = cache or run / "cache"
            training, validation = image_sets(data, val, recipe, folder, cache_gib, group, log)
            codes = None if vqgan is None else load_vqgan(vqgan).to(place)
            if codes is not None and not begun:
                give_pixel_decoder(tokenizer, codes)
            trainer = Trainer(
                recipe,
                tokenizer,
                training,
                run,
                validation=validation,
                initialised=initial is not None,
                codes=codes,
                log=log,
                group=group,
                autocast=choose_dtype(dtype, place),
                workers=workers or (1 if training.cached and place.type == "cpu" else os.cpu_count() or 1),
            )
            if begun:
                trainer.resume()
            if begun and log is not None:
                spent = trainer.state.progress(recipe)
                left = f"{spent:.0%} of the budget spent" if spent < 1 else "the budget is spent: give a larger one"
                log.message(f"resumed at step {trainer.state.step}, {left}", trainer.state.step)
            trainer.run()
    finally:
        if log is not None:
            log.close()
        group.leave()


def choose_recipe(
    run: Path, name: str | None, settings: tuple[str, ...], initial: Tokenizer | None, begun: bool
) -> Recipe:
    """The run's own recipe if it has begun, else the named preset (for the model that `initial` is), with settings."""
    if begun:
        path = run / "recipe.json"
        saved = recipes.from_json(path.read_text(), path)
        if name not in {None, saved.name}:
            raise UsageError(f"{run} is a run of the recipe {saved.name}, not {name}")
        recipe = recipes.override(saved, settings)
        if recipe.model != saved.model:
            raise UsageError(f"{run}: --set cannot change the model of a run that has begun")
        return recipe
    if name is None:
        raise UsageError(f"a new run needs --recipe; there are {', '.join(presets.NAMES)}")
    recipe = presets.named(name)
    if initial is not None:
        if type(initial.config) is not type(recipe.model):
            raise UsageError(f"the recipe {name} trains another kind of model than the {initial.name} of --init-from")
        recipe = replace(recipe, model=initial.config)
    recipe = recipes.override(recipe, settings)
    if recipe.needs_weights and initial is None:
        raise UsageError(f"the recipe {name} starts from trained weights: give them with --init-from")
    return recipe


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The autocast type; auto is bfloat16 where the hardware has it, float16 on older GPUs, float32 on older CPUs."""
    if dtype == "auto" and device.type == "cpu":
        has_bfloat16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        return torch.bfloat16 if has_bfloat16 else torch.float32
    return inference.find_dtype(None if dtype == "auto" else dtype, device)


def build(recipe: Recipe) -> Tokenizer:
    """An untrained tokenizer of the recipe's configuration."""
    torch.manual_seed(recipe.seed)
    return models.build(recipe.model)


def image_sets(
    data: Path, val: Path | None, recipe: Recipe, folder: Path, cache_gib: float, group: Group, log: RunLog | None
) -> tuple[ImageSet, ImageSet | None]:
    """(training, validation) images; without a validation set some of at least 100 images are held out, 2 % or 1000."""
    found = find(data)
    sources, held_out, notes = found.training, found.validation, found.notes
    if val is not None:
        given = find(val)
        held_out, notes = given.training + given.validation, notes + given.notes
    elif not held_out and len(sources) >= 100:
        step = max(50, len(sources) // 1000)
        held_out = sources[::step]
        sources = [source for at, source in enumerate(sources) if at % step]
    side = max(view.side for phase in recipe.phases if phase.share for view in phase.views)

    def progress(items: list[Source]) -> tqdm:
        return tqdm(items, desc="decoding", unit=" images", leave=False, disable=None if log is not None else True)

    if not group.first:
        group.wait()
    training, validation = (
        ImageSet(part, side * 9 // 8, folder, cache_gib * 2**30, progress=progress) for part in (sources, held_out)
    )
    if group.first:
        group.wait()
    if log is not None:
        for note in notes:
            log.message(note, 0)
        for images in (training, validation):
            if bad := images.unreadable:
                names = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
                log.message(f"skipped {len(bad)} unreadable images: {names}", 0, unreadable=bad)
        where = "decoded once" if training.cached else "decoded for every batch: more than --cache-gib"
        log.message(f"{len(training)} training images ({where}), {len(validation)} for validation", 0)
    if not len(training):
        raise InputError(f"{data}: none of its {len(sources)} images can be read")
    return training, validation if len(validation) else None
