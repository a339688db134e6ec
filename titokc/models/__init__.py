"""The tokenizers, images <-> token indices, a room each behind one interface; `titokc.weights` finds and loads them.

A new tokenizer is a folder with its config.py (without torch) and tokenizer.py, and a line in TABLE.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from titokc.errors import WeightsError

if TYPE_CHECKING:
    from titokc.models.interface import Config, Tokenizer

# Architecture, as config.json calls it -> its room, and the classes in the room's config.py and tokenizer.py.
TABLE = {
    "nano": ("titokc.models.nano", "NanoConfig", "NanoTokenizer"),
    "titok": ("titokc.models.titok", "TiTokConfig", "TiTok"),
}
# The model that travels inside the package, also known as "nano".
EMBEDDED = "nano-1"
EMBEDDED_FILE = Path(__file__).parents[1] / "weights" / "nano.safetensors"
# What a config.json is of that names none, as the released ones, and weights without any.
_UNNAMED = "titok"


class Release(NamedTuple):
    """A tokenizer that others have released. repo_id: on the Hugging Face hub. parameters: numbers in the weights, 4
    bytes each. revision, sha256: of the repository and its weights file, as far as they are known ("": not)."""

    repo_id: str
    parameters: int
    config: "Config | None"
    revision: str = ""
    sha256: str = ""


def releases() -> dict[str, Release]:
    """The released tokenizers by name, of all rooms that have some."""
    return import_module("titokc.models.titok.releases").RELEASES


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
