"""The tokenizers, images <-> token indices, a room each behind one interface; `titokc.weights` finds and loads them."""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from titokc.errors import WeightsError

if TYPE_CHECKING:
    from titokc.models.interface import Config, Tokenizer

# Architecture, as config.json calls it -> its room, and the classes in the room's config.py and tokenizer.py.
TABLE = {
    "nano": ("titokc.models.nano", "NanoConfig", "NanoTokenizer"),
    "titok": ("titokc.models.titok", "TiTokConfig", "TiTok"),
}
# What a config.json is of that names none, as the released ones, and weights without any.
_UNNAMED = "titok"


def configured(data: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]) -> "Config":
    """The configuration in a parsed config.json, if there is one, and in the shapes of the weights. WeightsError."""
    architecture = _UNNAMED if data is None else data.get("architecture", _UNNAMED)
    if architecture not in TABLE:
        raise WeightsError(f"the architecture {architecture!r} is not known; there are {', '.join(TABLE)}")
    room, config, _ = TABLE[architecture]
    return getattr(import_module(f"{room}.config"), config).from_dict(data, shapes)


def build(config: "Config") -> "Tokenizer":
    """A tokenizer of this configuration with random weights."""
    room, _, tokenizer = TABLE[config.architecture]
    return getattr(import_module(f"{room}.tokenizer"), tokenizer)(config)
