"""Two hashes of a model: of its code, which `.tok` files carry the start of, and of all its weights.

A better decoder for the same tokens changes the second and not the first.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
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

    lines = {}
    for name, tensor in tokenizer.state_dict().items():
        shape, kind = "x".join(map(str, tensor.shape)), str(tensor.dtype).removeprefix("torch.")
        lines[name] = f"{name} {kind} {shape} {hashlib.sha256(raw_bytes(tensor)).hexdigest()}\n"
    code, architecture = tokenizer.code(), tokenizer.config.architecture
    own = {"architecture": architecture, "fields": code.fields, "version": code.version}
    all_fields = {"architecture": architecture, "fields": _unusual(tokenizer.config)}
    return Fingerprints(_hash(own, {name: lines[name] for name in code.tensors}), _hash(all_fields, lines))


def _hash(fields: Mapping[str, Any], lines: Mapping[str, str]) -> bytes:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":")) + "\n"
    return hashlib.sha256((text + "".join(lines[name] for name in sorted(lines))).encode("ascii")).digest()


def _unusual(config: Any) -> dict[str, Any]:
    """The fields that are not at their defaults, so that a field of a later version changes nothing."""
    values = dataclasses.asdict(config)
    fields = dataclasses.fields(config)
    return {field.name: values[field.name] for field in fields if getattr(config, field.name) != field.default}
