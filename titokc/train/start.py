"""From the options of `titokc train` to a running `titokc.train.loop.Trainer`: recipe, data, tokenizer, device."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm import tqdm

from titokc import models, weights
from titokc.container import MAX_BITS_PER_INDEX, MAX_TOKENS_PER_TILE
from titokc.engines.torch import find_device, find_dtype
from titokc.errors import InputError, OutputError, UsageError
from titokc.files import write_atomic
from titokc.models.interface import Tokenizer
from titokc.models.precision import convolution_format
from titokc.train import checkpoint, objectives, recipes
from titokc.train.data import Found, ImageSet, Source, find
from titokc.train.distributed import Group, local_device
from titokc.train.estimate import estimate
from titokc.train.log import RunLog
from titokc.train.loop import Trainer
from titokc.train.objectives import Setup
from titokc.train.recipes import schema
from titokc.train.recipes.schema import Recipe


def start(
    data: Path,
    run: Path,
    *,
    name: str | None = None,
    settings: tuple[str, ...] = (),
    resume: bool = False,
    other_data: bool = False,
    init_from: str | None = None,
    proxy: Path | None = None,
    max_minutes: float | None = None,
    steps: int | None = None,
    val: Path | None = None,
    cache: Path | None = None,
    cache_gib: float = 8.0,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
    scale: int | None = None,
    quiet: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None],
) -> None:
    """One `titokc train`; `say` takes one-line messages for the person.

    scale: how many times its own batches a new run's recipe gets; None: what it names for a GPU, where one trains.
    Nothing is written before all that can be known to be missing has been looked for.
    """
    if threads:
        torch.set_num_threads(threads)
    begun = (run / "recipe.json").exists()
    if begun and not resume:
        schema.from_json((run / "recipe.json").read_text(), run / "recipe.json")
        raise UsageError(f"{run} holds a run already: continue it with --resume, or choose another folder")
    initial = None if init_from is None or checkpoint.saved(run) else weights.load(init_from)
    place = local_device(find_device(device))
    recipe = choose_recipe(run, name, settings, initial, begun, scale, place.type == "cuda")
    if max_minutes is not None or steps is not None:
        recipe = replace(recipe, minutes=max_minutes or 0.0, steps=steps or 0)
    autocast = find_dtype(None if dtype == "auto" else dtype, place)
    found = _split(data, val)
    group = Group() if dry_run else Group.join(place)
    with group.joined():
        tokenizer = build(recipe).to(place).to(memory_format=convolution_format(place))
        if initial is not None:
            added = {n: tensor for n, tensor in tokenizer.state_dict().items() if n.partition(".")[0] in recipe.adds}
            checkpoint.fill(tokenizer, added | initial.state_dict(), Path(init_from or ""))
        schema.check(recipe, tokenizer)
        for note in _notes(recipe, tokenizer) if group.first else ():
            say(note)
        setup = Setup(place, group, proxy)
        begin = objectives.begin(recipe.phases, setup)
        options: dict[str, Any] = {"initialised": initial is not None, "autocast": autocast, "group": group}
        if dry_run:
            options["workers"] = workers or (1 if place.type == "cpu" else os.cpu_count() or 1)
            with _few(found, recipe, say) as images:
                for line in estimate(
                    Trainer(recipe, tokenizer, begin, images, run, **options), int(os.environ.get("WORLD_SIZE", 1))
                ):
                    say(line)
            if initial is None and not begun and tokenizer.fit_steps:
                say("before that its quantiser is fitted, which takes 10 to 20 minutes on one core (not measured)")
            return
        with _held(run, recipe, group), ExitStack() as stack:
            log = stack.enter_context(closing(RunLog(run, say, quiet))) if group.first else None
            training, validation = image_sets(found, recipe, cache or run / "cache", cache_gib, group, log)
            options["workers"] = workers or (1 if training.cached and place.type == "cpu" else os.cpu_count() or 1)
            trainer = Trainer(recipe, tokenizer, begin, training, run, validation=validation, log=log, **options)
            if checkpoint.saved(run):
                trainer.resume(other_data)
            trainer.run()


@contextmanager
def _held(run: Path, recipe: Recipe, group: Group) -> Iterator[None]:
    """Holds the run folder and keeps the recipe in it; what was asked for wrongly leaves nothing behind."""
    if not group.first:
        yield
        return
    new, path = not run.exists(), run / "recipe.json"
    with checkpoint.locked(run):
        before = path.read_bytes() if path.exists() else None
        write_atomic(path, schema.to_json(recipe).encode())
        try:
            yield
        except Exception as error:
            if before is not None:
                if isinstance(error, (InputError, UsageError)):
                    write_atomic(path, before)
            elif not checkpoint.saved(run) and not isinstance(error, (OSError, OutputError)):
                path.unlink()
                if new:
                    shutil.rmtree(run)
            raise


def _notes(recipe: Recipe, tokenizer: Tokenizer) -> Iterator[str]:
    """What one may not expect of a run."""
    if recipe.scale > 1:
        yield f"--scale {recipe.scale}: batches {recipe.scale}, rates {recipe.scale**0.5:.3g} times the recipe's own"
    total = sum(phase.share for phase in recipe.phases)
    for at, phase in enumerate(recipe.phases):
        steps = int(recipe.steps * phase.share / total)
        if 0 < steps < 2 * phase.warmup:
            yield f"phase {phase.name}: {phase.warmup} of its {steps} steps warm up (--set phases.{at}.warmup=N)"
    tokens, bits = tokenizer.info.max_tokens, tokenizer.info.bits
    if tokens > MAX_TOKENS_PER_TILE or bits > MAX_BITS_PER_INDEX:
        most = f"{MAX_TOKENS_PER_TILE} of {MAX_BITS_PER_INDEX}"
        yield f"no .tok file holds {tokens} tokens of {bits} bits, at most {most}: titokc will not encode with it"


def choose_recipe(
    run: Path,
    name: str | None,
    settings: tuple[str, ...],
    initial: Tokenizer | None,
    begun: bool,
    scale: int | None = None,
    on_gpu: bool = False,
) -> Recipe:
    """The run's own recipe if it has begun, else the named one (for the model that `initial` is), scaled and then with
    settings."""
    if begun:
        if scale is not None:
            raise UsageError(f"{run}: --scale cannot change the batches of a run that has begun")
        path = run / "recipe.json"
        saved = schema.from_json(path.read_text(), path)
        if name not in {None, saved.name}:
            raise UsageError(f"{run} is a run of the recipe {saved.name}, not {name}")
        recipe = schema.override(saved, settings)
        if recipe.model != saved.model:
            raise UsageError(f"{run}: --set cannot change the model of a run that has begun")
        if not checkpoint.saved(run) and saved.initial != _fingerprint(initial):
            raise UsageError(
                f"{run} has no checkpoint yet: begin it again with its own --init-from, or in another folder"
            )
        return recipe
    if name is None:
        raise UsageError(f"a new run needs --recipe; there are {', '.join(recipes.NAMES)}")
    recipe = recipes.named(name)
    if initial is not None:
        if type(initial.config) is not type(recipe.model):
            given = initial.info.name
            raise UsageError(f"the recipe {name} trains another kind of model than the {given} of --init-from")
        config: Any = initial.config
        lacking = {part: getattr(recipe.model, part) for part in recipe.adds if not getattr(config, part)}
        recipe = replace(recipe, model=replace(config, **lacking))
    recipe = schema.scaled(recipe, scale or (recipe.on_gpu if on_gpu else 1))
    recipe = replace(schema.override(recipe, settings), initial=_fingerprint(initial))
    if recipe.needs_weights and initial is None:
        raise UsageError(f"the recipe {name} starts from trained weights: give them with --init-from")
    return recipe


def _fingerprint(initial: Tokenizer | None) -> str:
    return "" if initial is None else weights.fingerprints(initial).weights.hex()


def build(recipe: Recipe) -> Tokenizer:
    """An untrained tokenizer of the recipe's configuration."""
    torch.manual_seed(recipe.seed)
    return models.build(recipe.model)


def _split(data: Path, val: Path | None) -> Found:
    """The images of DATA and of --val; without any for validation some of at least 100 are held out, 2 % or 1000."""
    found = find(data)
    if val is not None:
        given = find(val)
        notes, held = found.notes + given.notes, given.training + given.validation
        places = {(source.path.resolve(), source.offset) for source in held}
        training = [source for source in found.training if (source.path.resolve(), source.offset) not in places]
        if not training:
            return Found(found.training, held, [*notes, "--val has all images too: it says nothing of others"])
        if both := len(found.training) - len(training):
            notes = [*notes, f"{both} images are in --val too: they are not trained on"]
        return Found(training, held, notes)
    if found.validation or len(found.training) < 100:
        return found
    step = max(50, len(found.training) // 1000)
    rest = [source for at, source in enumerate(found.training) if at % step]
    return Found(rest, found.training[::step], found.notes)


def _cached_side(recipe: Recipe) -> int:
    return recipe.largest_view.side * 9 // 8


def image_sets(
    found: Found, recipe: Recipe, folder: Path, cache_gib: float, group: Group, log: RunLog | None
) -> tuple[ImageSet, ImageSet | None]:
    """(training, validation) images, decoded by the first process; said what there is."""

    def progress(items: list[Source]) -> tqdm:
        return tqdm(items, desc="decoding", unit=" images", leave=False, disable=None if log is not None else True)

    if not group.first:
        group.wait()
    training, validation = (
        ImageSet(part, _cached_side(recipe), folder, cache_gib * 2**30, progress=progress)
        for part in (found.training, found.validation)
    )
    if group.first:
        group.wait()
    if log is not None:
        for note in found.notes:
            log.message(note, 0)
        for images in (training, validation):
            if bad := images.unreadable:
                names = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
                log.message(f"skipped {len(bad)} unreadable images: {names}", 0, unreadable=bad)
        where = "decoded once" if training.cached else "decoded for every batch: more than --cache-gib"
        log.message(f"{len(training)} training images ({where}), {len(validation)} for validation", 0)
        largest = max(view.batch_size for phase in recipe.phases if phase.share for view in phase.views)
        if 0 < len(training) < largest:
            log.message(f"a batch of {largest} shows each image several times, cropped differently", 0)
    if not len(training):
        raise InputError(f"none of the {len(found.training)} training images can be read")
    return training, validation if len(validation) else None


@contextmanager
def _few(found: Found, recipe: Recipe, say: Callable[[str], None]) -> Iterator[ImageSet]:
    """Some of the images, for a dry run; said what there is."""
    for note in found.notes:
        say(note)
    say(f"{len(found.training)} training images, {len(found.validation)} for validation")
    some = found.training[:: max(1, len(found.training) // 16)][:16]
    with TemporaryDirectory() as folder:
        images = ImageSet(some, _cached_side(recipe), Path(folder))
        if not len(images):
            raise InputError(f"none of {len(some)} training images can be read, {images.unreadable[0]} for one")
        yield images
