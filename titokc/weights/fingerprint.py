"""Two hashes of a model: of its code, which `.tok` files carry the start of, and of all its weights.

A better decoder for the same tokens changes the second and not the first.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from titokc.models.interface import Tokenizer


class Fingerprints(NamedTuple):
    """SHA-256, 32 bytes each. code: of what gives the tokens their meaning (`Tokenizer.code`): architecture, version of
    the algorithm, and the fields and tensors that the architecture names. weights: of architecture, the fields of the
    configuration that differ from their defaults, and all tensors; tells damage, and versions of decoders apart."""

    code: bytes
    weights: bytes


def fingerprints(tokenizer: "Tokenizer") -> Fingerprints:
    """Both, the same whatever file the tokenizer was loaded from.

    Hashed are a JSON object (keys sorted, no spaces, ASCII) and a line feed; then for each tensor, by name,
    "NAME DTYPE D1xD2x... HASH" and a line feed, HASH being the SHA-256 in hex of its elements in row-major order,
    little-endian. The objects are {"architecture": ..., "fields": ..., "version": ...} for the code and
    {"architecture": ..., "fields": ...} for the weights.
    """
    from titokc.weights.tensors import raw_bytes

    lines = {
        name: line(name, str(tensor.dtype).removeprefix("torch."), tensor.shape, raw_bytes(tensor))
        for name, tensor in tokenizer.state_dict().items()
    }
    code, architecture = tokenizer.code(), tokenizer.config.architecture
    own = of_code(architecture, code.version, code.fields, [lines[name] for name in code.tensors])
    return Fingerprints(
        own, _hash({"architecture": architecture, "fields": _unusual(tokenizer.config)}, lines.values())
    )


def of_code(architecture: str, version: int, fields: Mapping[str, Any], lines: Iterable[str]) -> bytes:
    """The fingerprint of a code from the `line` of each of its tensors."""
    return _hash({"architecture": architecture, "fields": fields, "version": version}, lines)


def line(name: str, kind: str, shape: Iterable[int], data: memoryview) -> str:
    """What is hashed of a tensor; kind: "float32", "int8", ...; data: its elements' bytes."""
    return f"{name} {kind} {'x'.join(map(str, shape))} {hashlib.sha256(data).hexdigest()}\n"


def _hash(fields: Mapping[str, Any], lines: Iterable[str]) -> bytes:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":")) + "\n"
    by_name = sorted(lines, key=lambda text: text.split(" ", 1)[0])
    return hashlib.sha256((text + "".join(by_name)).encode("ascii")).digest()


def _unusual(config: Any) -> dict[str, Any]:
    """The fields that are not at their defaults, so that a field of a later version changes nothing."""
    values = dataclasses.asdict(config)
    fields = dataclasses.fields(config)
    return {field.name: values[field.name] for field in fields if getattr(config, field.name) != field.default}
