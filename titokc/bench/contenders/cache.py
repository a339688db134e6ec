"""Search results on disk: a JSON file for each contender and picture, safe to share between processes."""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from titokc.bench.contenders.interface import Contender, Found, Impossible
from titokc.errors import OutputError
from titokc.files import expanded, write_atomic

VERSION = 7  # of the search: part of the keys


def default_cache() -> Path:
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "titokc" / "bench"


def best_files(
    contender: Contender, image: Image.Image, budgets: Sequence[int | None], folder: Path
) -> tuple[dict[int | None, Found | Impossible], str | None]:
    """The best file within each budget, and for the budget None the floor, where there is one: as kept in `folder`, or
    searched. And why what was searched could not be kept, where that is so."""
    key = sha256(f"{VERSION} {contender.version} {image.size} ".encode() + image.tobytes()).hexdigest()
    path = folder / contender.name / f"{key[:32]}.json"
    known, problem = _read(path), None
    absent = [budget for budget in budgets if str(budget) not in known]
    if absent:
        sizes = [budget for budget in absent if budget is not None]
        known |= {str(size): _to_json(found) for size, found in zip(sizes, contender.best(image, *sizes), strict=True)}
        if None in absent and (floor := contender.floor(image)):
            known[str(None)] = _to_json(floor)
        text = json.dumps({"codec": contender.name, "version": contender.version, "found": known}, indent=1)
        try:
            write_atomic(path, text.encode())
        except OutputError as error:
            problem = str(error)
    return {budget: _from_json(known[str(budget)]) for budget in budgets if str(budget) in known}, problem


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes())["found"])
    except (OSError, ValueError, KeyError, TypeError):  # absent or damaged: searched again
        return {}


def _to_json(found: Found | Impossible) -> dict[str, Any]:
    return vars(found) | ({"data": b64encode(found.data or b"").decode()} if isinstance(found, Found) else {})


def _from_json(entry: dict[str, Any]) -> Found | Impossible:
    if "smallest" in entry:
        return Impossible(**entry)
    return Found(**(entry | {"data": b64decode(entry["data"])}))
