"""What a training recipe is: frozen dataclasses, changed by dotted path and kept as JSON in the run folder.

A recipe is the whole experiment apart from the data: the model's configuration, phases with their objectives,
optimisers and seed. `titokc.train.recipes` has the named ones, `titokc.train.loop` runs them.
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from titokc import models
from titokc.errors import UsageError, WeightsError
from titokc.models.interface import Tokenizer
from titokc.train import objectives
from titokc.train.objectives.pixels import Pixels


@dataclass(frozen=True)
class View:
    """One kind of batch in a phase: square crops of `side` pixels, `batch_size` of them over all processes.

    share: part of the phase's steps that see this view. large_share: part of the samples drawn from images of at
    least twice `side` (negative: in proportion to their number). min_scale: smallest part of an image's largest
    square that a crop covers, by side length, where that is larger than a crop enlarged `max_zoom` times; images
    smaller than `min_source` x `side` are left out. jitter: strength of the brightness, contrast, gamma and colour
    changes.
    """

    side: int
    batch_size: int
    share: float = 1.0
    large_share: float = -1.0
    min_scale: float = 0.5
    max_zoom: float = 1.25
    min_source: float = 0.75
    jitter: float = 0.1

    def __post_init__(self) -> None:
        _at_least(self, 1, "side", "batch_size")
        _at_least(self, 0, "share", "min_source", "jitter")
        _at_least(self, 1, "max_zoom")
        if not 0 < self.min_scale <= 1:
            raise ValueError(f"min_scale is {self.min_scale}, expected more than 0, at most 1")


@dataclass(frozen=True)
class Phase:
    """A part (`share`, relative to the other phases') of the budget with its own batches, objective and learning rates.

    objective: settings of one of `titokc.train.objectives.TABLE`. lr drives AdamW, muon_lr Muon; both are warmed up
    over `warmup` steps at the start of the phase and follow the recipe's cosine. trainable: prefixes of the parameters
    that train (empty: all). search: further passes over each batch, each from latents that the pass before found better
    (tokenizers that can search); with them, the decoder learns the tokens that a search makes.
    """

    name: str
    share: float
    views: tuple[View, ...]
    objective: Any = field(default_factory=Pixels)
    lr: float = 1e-3
    muon_lr: float = 5e-3
    warmup: int = 100
    trainable: tuple[str, ...] = ()
    search: int = 0

    def __post_init__(self) -> None:
        _at_least(self, 0, "share", "lr", "muon_lr", "warmup", "search")
        if not sum(view.share for view in self.views):
            raise ValueError(f"no view of the phase {self.name} has a share")


@dataclass(frozen=True)
class Recipe:
    """One training run. The budget is `steps`, `minutes`, or whichever ends first when both are set.

    micro_batch: most images in one forward pass of one process (0: no limit; more are accumulated). token_drop_step:
    a tokenizer whose prefixes are codes too (`model.min_tokens` of a TiTok makes it one) keeps a random prefix of each
    image's tokens: all, token_drop_step less, ... down to min_tokens. needs_weights: only makes sense with --init-from.
    adds: parts of the model, called alike in its configuration and its weights, that it gains where those lack them.
    revival_patience: codebook entries unused for this many codebook sizes of tokens are replaced (0: never).
    divergence: a smoothed loss this many times its lowest is a divergence. val_images: most images in one validation.
    on_gpu: how many times the batches it is `scaled` to where a GPU trains. scale: how many times those of the named
    recipe its batches are. initial: fingerprint of the weights that the run begins from, if not from random ones.
    """

    name: str
    model: Any
    phases: tuple[Phase, ...]
    steps: int = 0
    minutes: float = 0.0
    micro_batch: int = 0
    token_drop_step: int = 1
    needs_weights: bool = False
    adds: tuple[str, ...] = ()
    revival_patience: float = 20.0
    muon: bool = True
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-4
    final_lr: float = 0.01
    clip: float = 1.0
    ema_decay: float = 0.999
    divergence: float = 3.0
    checkpoint_steps: int = 1000
    checkpoint_minutes: float = 5.0
    val_steps: int = 1000
    val_minutes: float = 10.0
    val_images: int = 200
    seed: int = 0
    on_gpu: int = 1
    scale: int = 1
    initial: str = ""

    def __post_init__(self) -> None:
        _at_least(self, 0, "steps", "minutes", "micro_batch", "revival_patience", "weight_decay", "final_lr", "seed")
        _at_least(self, 1, "token_drop_step", "checkpoint_steps", "val_steps", "val_images", "on_gpu", "scale")
        if not (self.clip > 0 and self.divergence > 1 and 0 <= self.ema_decay < 1):
            raise ValueError("expected clip above 0, divergence above 1, ema_decay from 0 to below 1")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}, expected two from 0 to below 1")

    @property
    def largest_view(self) -> View:
        """What a tokenizer is fitted to."""
        return max((view for phase in self.phases if phase.share for view in phase.views), key=lambda view: view.side)


def check(recipe: Recipe, tokenizer: Tokenizer) -> None:
    """UsageError if the recipe cannot train this tokenizer."""
    if not recipe.steps and not recipe.minutes:
        raise UsageError("a run needs a budget: steps or minutes")
    phases = [phase for phase in recipe.phases if phase.share]
    if not phases:
        raise UsageError("no phase of the recipe has a share of the budget")
    names = [name for name, parameter in tokenizer.named_parameters() if parameter.requires_grad]
    for phase in phases:
        if phase.search and not tokenizer.searches:
            raise UsageError(f"phase {phase.name}: this tokenizer cannot search for better latents, leave search at 0")
        for view in phase.views:
            if view.side not in tokenizer.training_sides:
                expected = " or ".join(map(str, tokenizer.training_sides))
                raise UsageError(f"phase {phase.name}: a view of {view.side} pixels, this model takes {expected}")
        if phase.trainable and not any(name.startswith(phase.trainable) for name in names):
            raise UsageError(f"phase {phase.name}: no parameter's name starts with {' or '.join(phase.trainable)}")


def scaled(recipe: Recipe, times: int) -> Recipe:
    """The recipe for batches that are so many times as large: one rule for all.

    Rates, those of adversaries too, grow by the square root (S. Malladi et al., "On the SDEs and scaling rules for
    adaptive gradient algorithms", arXiv 2205.10287), the average's decay is raised to that power (D. Busbridge et al.,
    "How to scale your EMA", arXiv 2307.13813), and steps are so many times fewer; minutes stay.
    """

    def phase(old: Phase) -> Phase:
        return replace(
            old,
            views=tuple(replace(view, batch_size=times * view.batch_size) for view in old.views),
            objective=old.objective.scaled(times),
            lr=old.lr * times**0.5,
            muon_lr=old.muon_lr * times**0.5,
        )

    return replace(
        recipe,
        phases=tuple(map(phase, recipe.phases)),
        steps=-(-recipe.steps // times),
        ema_decay=recipe.ema_decay**times,
        scale=times * recipe.scale,
    )


def _at_least(settings: Any, least: int, *names: str) -> None:
    for name in names:
        if (value := getattr(settings, name)) < least:
            raise ValueError(f"{name} is {value}, expected {least} or more")


def override(recipe: Recipe, settings: tuple[str, ...]) -> Recipe:
    """The recipe with every "dotted.path=value" of `settings` applied at once, each with the type of its field.

    `phases.0.lr=1e-3`, `model.fsq_levels=8,8,8,8`. UsageError names a path, type or value that is wrong.
    """
    data = _to_data(recipe)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: expected key=value")
        *parents, leaf = path.strip().split(".")
        owner: Any = recipe
        place: Any = data
        for depth, part in enumerate(parents, 1):
            owner, place = _field(owner, part, ".".join(parents[:depth])), place[int(part) if part.isdigit() else part]
        if _is_nested(_field(owner, leaf, path)):
            raise UsageError(f"--set {path}: name one of its fields")
        place[leaf] = _parsed(text.strip(), get_type_hints(type(owner))[leaf], path)
    try:
        return _from_data(data)
    except (ValueError, TypeError, WeightsError) as error:
        raise UsageError(f"--set {' '.join(settings)}: {error}") from error


def _field(owner: Any, name: str, path: str) -> Any:
    """What a dataclass, or a tuple of them, has under this name or number."""
    if not _is_nested(owner):
        raise UsageError(f"--set {path.rpartition('.')[0]}: it has no fields")
    if isinstance(owner, tuple):
        if not name.isdigit() or int(name) >= len(owner):
            raise UsageError(f"--set {path}: expected 0..{len(owner) - 1}")
        return owner[int(name)]
    if name not in (names := [field.name for field in fields(owner)]):
        raise UsageError(f"--set {path}: there is no such field; there are {', '.join(names)}")
    return getattr(owner, name)


def _is_nested(value: Any) -> bool:
    return is_dataclass(value) or (isinstance(value, tuple) and bool(value) and is_dataclass(value[0]))


def _parsed(text: str, kind: Any, path: str) -> Any:
    """`text` as a bool, int, float or str, or as a tuple of those written 1,2,3."""
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        return tuple(_parsed(part.strip(), inner, path) for part in text.strip("()").split(",") if part.strip())
    if kind is str:
        return text
    if kind is bool and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    if kind in {int, float}:
        try:
            number = float(text.replace("_", ""))
        except ValueError:
            number = math.nan
        if math.isfinite(number) and (kind is float or number == int(number)):
            return kind(number)
    raise UsageError(f"--set {path}: expected {getattr(kind, '__name__', kind)}, found {text!r}")


_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def to_json(recipe: Recipe) -> str:
    """The recipe as the run folder's recipe.json."""
    return json.dumps(_to_data(recipe), indent=2) + "\n"


def from_json(text: str, source: Path) -> Recipe:
    """The recipe that `to_json` wrote; fields it lacks take their defaults. WeightsError for anything else."""
    try:
        return _from_data(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, WeightsError) as error:
        raise WeightsError(
            f"{source}: not a recipe of this version, or none of titokc ({error}): choose another run folder"
        ) from error


def _to_data(recipe: Recipe) -> dict[str, Any]:
    names = {settings: name for name, (settings, _) in objectives.TABLE.items()}
    data = asdict(recipe) | {"model": recipe.model.to_dict()}
    for phase, written in zip(recipe.phases, data["phases"], strict=True):
        written["objective"] |= {"kind": names[type(phase.objective)]}
    return data


def _from_data(data: dict[str, Any]) -> Recipe:
    for phase in data["phases"]:
        settings, _ = objectives.TABLE[phase["objective"].pop("kind")]
        phase["objective"] = _rebuilt(settings, phase["objective"])
    return _rebuilt(Recipe, data | {"model": models.configured(data["model"], {})})


def _rebuilt(kind: Any, data: dict[str, Any]) -> Any:
    hints = get_type_hints(kind)
    unknown = ", ".join(sorted(set(data) - set(hints)))
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {unknown}")
    return kind(**{name: _typed(hints[name], value) for name, value in data.items()})


def _typed(hint: Any, value: Any) -> Any:
    if is_dataclass(hint) and isinstance(value, dict):
        return _rebuilt(hint, value)
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_typed(get_args(hint)[0], item) for item in value)
    return value
