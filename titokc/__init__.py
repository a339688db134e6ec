"""Photographs in 48 to 192 bytes: an extreme lossy image codec on 1-D image tokenizers (TiTok).

    data = titokc.encode("photo.jpg", tokens=32)
    picture = titokc.decode(data)

Nothing heavy is imported before it is used: numpy, Pillow and torch come with the first picture.
"""

# typing's would take longer to import than all of this file; type checkers know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from titokc._version import __version__
    from titokc.codec import Codec, decode, encode
    from titokc.container import Header, read_header, truncate
    from titokc.errors import (
        ContainerError,
        InputError,
        LimitExceededError,
        MetricWeightsMissingError,
        ModelError,
        ModelMismatchError,
        ModelNotFoundError,
        OutputError,
        TitokcError,
        UsageError,
        WeightsError,
    )
    from titokc.limits import DEFAULT_LIMITS, Limits

_HOME = {
    "Codec": "titokc.codec",
    "encode": "titokc.codec",
    "decode": "titokc.codec",
    "Header": "titokc.container",
    "Limits": "titokc.limits",
    "DEFAULT_LIMITS": "titokc.limits",
    "read_header": "titokc.container",
    "truncate": "titokc.container",
    "__version__": "titokc._version",
}

__all__ = [
    "DEFAULT_LIMITS",
    "Codec",
    "ContainerError",
    "Header",
    "InputError",
    "LimitExceededError",
    "Limits",
    "MetricWeightsMissingError",
    "ModelError",
    "ModelMismatchError",
    "ModelNotFoundError",
    "OutputError",
    "TitokcError",
    "UsageError",
    "WeightsError",
    "__version__",
    "decode",
    "encode",
    "read_header",
    "truncate",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'titokc' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME.get(name, "titokc.errors")), name)
