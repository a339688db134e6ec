"""Training recipes: frozen dataclasses with named presets; `titokc.train.loop` runs them, the run folder keeps them.

A recipe is the whole experiment apart from the data: the model's configuration, phases, losses, optimisers and
seed. `override` changes fields by dotted path (`phases.0.lr=1e-3`), with the type of the field it replaces.
"""

import ast
import dataclasses
import json
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, get_args, get_origin, get_type_hints

from titokc.errors import UsageError


@dataclass(frozen=True)
class View:
    """One kind of batch in a phase: square crops of `side` pixels, `batch_size` of them over all processes.

    share: part of the phase's steps that see this view. large_share: part of the samples drawn from images of at
    least twice `side` (negative: in proportion to their number). min_scale: smallest part of an image's largest
    square that a crop covers, by side length, where the image is larger than the crop; images smaller than
    `min_source` x `side` are left out. jitter: strength of the brightness, contrast, gamma and colour changes.
    """

    side: int
    batch_size: int
    share: float = 1.0
    large_share: float = -1.0
    min_scale: float = 0.5
    min_source: float = 0.75
    jitter: float = 0.1


@dataclass(frozen=True)
class Losses:
    """Weights of the loss terms; a term of weight 0 is neither computed nor imported.

    l2, l1: pixels in [0, 1]. efficientnet, lpips, convnext: perceptual distances (`titokc.train.perceptual`).
    gan: hinge loss of the discriminator, from `gan_start` (part of the phase) on; lecam: its regulariser.
    quantizer: the tokenizer's own codebook and commitment terms. codes: cross-entropy on proxy codes (stage 1).
    """

    l2: float = 1.0
    l1: float = 0.0
    efficientnet: float = 0.0
    lpips: float = 0.0
    convnext: float = 0.0
    gan: float = 0.0
    gan_start: float = 0.0
    lecam: float = 0.001
    quantizer: float = 1.0
    codes: float = 0.0


@dataclass(frozen=True)
class Phase:
    """A part (`share`) of the budget with its own batches, losses and learning rates.

    lr drives AdamW, muon_lr Muon; both are warmed up over `warmup` steps at the start of the phase and follow the
    recipe's cosine. trainable: prefixes of the parameters that train (empty: all).
    """

    name: str
    share: float
    views: tuple[View, ...]
    losses: Losses = field(default_factory=Losses)
    lr: float = 1e-3
    muon_lr: float = 5e-3
    warmup: int = 100
    trainable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """One training run. The budget is `steps`, `minutes`, or whichever ends first when both are set.

    micro_batch: most images in one forward pass of one process (0: no limit; more are accumulated). token_drop_min:
    0 keeps all tokens; else every image keeps a random prefix of token_drop_min, + token_drop_step, ... tokens.
    divergence: a smoothed loss this many times its best is a divergence and rolls back. val_images: most images in
    one validation.
    """

    name: str
    model: Any
    phases: tuple[Phase, ...]
    steps: int = 0
    minutes: float = 0.0
    micro_batch: int = 0
    token_drop_min: int = 0
    token_drop_step: int = 1
    muon: bool = True
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-4
    discriminator_lr: float = 1e-4
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


def override(recipe: Recipe, settings: tuple[str, ...]) -> Recipe:
    """The recipe with each "dotted.path=value" of `settings` applied; UsageError names a wrong path or type."""
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: expected key=value")
        recipe = _replaced(recipe, path.strip().split("."), text.strip(), path)
    return recipe


def _replaced(node: Any, parts: list[str], text: str, path: str) -> Any:
    head, rest = parts[0], parts[1:]
    if isinstance(node, tuple):
        if not head.isdigit() or int(head) >= len(node):
            raise UsageError(f"--set {path}: {head!r} is not one of 0..{len(node) - 1}")
        at = int(head)
        if not rest:
            raise UsageError(f"--set {path}: name a field of it")
        return (*node[:at], _replaced(node[at], rest, text, path), *node[at + 1 :])
    if not is_dataclass(node) or head not in {f.name for f in fields(node)}:
        known = ", ".join(f.name for f in fields(node)) if is_dataclass(node) else "none"
        raise UsageError(f"--set {path}: no field {head!r} here (fields: {known})")
    old = getattr(node, head)
    value = _replaced(old, rest, text, path) if rest else _parsed(text, get_type_hints(type(node))[head], old, path)
    try:
        return replace(node, **{head: value})  # type: ignore[type-var]
    except (ValueError, TypeError) as error:
        raise UsageError(f"--set {path}={text}: {error}") from error


def _parsed(text: str, hint: Any, old: Any, path: str) -> Any:
    """`text` as the field's type: bool, int, float, str, or a tuple of those written as 1,2,3."""
    if is_dataclass(old) or (isinstance(old, tuple) and old and is_dataclass(old[0])):
        raise UsageError(f"--set {path}: name one of its fields")
    kind = type(old) if hint is Any else hint
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        return tuple(_parsed(part.strip(), inner, None, path) for part in text.strip("()").split(",") if part.strip())
    if kind is str:
        return text
    if kind is bool and text.lower() in {"true", "false", "1", "0", "yes", "no", "on", "off"}:
        return text.lower() in {"true", "1", "yes", "on"}
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and numeric:
        return float(value)
    if kind is int and numeric and value == int(value):
        return int(value)
    if kind not in {int, float, bool} and (value is not None or text == "None"):
        return value
    raise UsageError(f"--set {path}: expected {getattr(kind, '__name__', kind)}, found {text!r}")


def to_json(recipe: Recipe) -> str:
    """The recipe as the run folder's recipe.json."""
    return json.dumps(dataclasses.asdict(recipe), indent=2) + "\n"


def from_json(text: str) -> Recipe:
    """The recipe that `to_json` wrote; fields it lacks take their defaults, unknown ones are refused by name."""
    data = json.loads(text)
    base = named(data["name"])
    return _rebuilt(Recipe, data | {"model": _rebuilt(type(base.model), data["model"])})


def _rebuilt(kind: Any, data: dict[str, Any]) -> Any:
    hints = get_type_hints(kind)
    unknown = set(data) - set(hints)
    if unknown:
        raise UsageError(f"recipe.json: {kind.__name__} has no field {', '.join(sorted(unknown))}")
    return kind(**{name: _typed(hints[name], value) for name, value in data.items()})


def _typed(hint: Any, value: Any) -> Any:
    if is_dataclass(hint) and isinstance(value, dict):
        return _rebuilt(hint, value)
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_typed(get_args(hint)[0], item) for item in value)
    return value


def named(name: str) -> Recipe:
    """The preset called `name`; UsageError lists them all otherwise."""
    if name == "nano":
        return _nano()
    raise UsageError(f"recipe {name!r} is not known; there are: nano")


def _nano() -> Recipe:
    from titokc.models.nano import NanoConfig

    return Recipe(
        name="nano",
        model=NanoConfig(),
        minutes=360,
        token_drop_min=32,
        token_drop_step=32,
        ema_decay=0.998,
        phases=(
            Phase(
                name="pretrain-64",
                share=0.5,
                views=(View(side=64, batch_size=128, large_share=0.35, min_scale=0.4),),
            ),
            Phase(
                name="train-256",
                share=0.5,
                views=(
                    View(side=256, batch_size=32, share=0.75, min_scale=0.6),
                    View(side=64, batch_size=128, share=0.25, large_share=0.35, min_scale=0.4),
                ),
            ),
        ),
    )
