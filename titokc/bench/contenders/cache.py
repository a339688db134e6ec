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

VERSION = 6  # of the search: part of the keys


def default_cache() -> Path:
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "titokc" / "bench"


class Cache:
    """`problem`: why results could not be kept, once that happened; they are found all the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problem: str | None = None

    def find(
        self, contender: Contender, image: Image.Image, budgets: Sequence[int | None]
    ) -> dict[int | None, Found | Impossible]:
        """The best file within each budget, and for the budget None the floor, where there is one."""
        path = self._path(contender, image)
        known = _read(path)
        absent = [budget for budget in budgets if str(budget) not in known]
        for budget in absent:
            found = contender.floor(image) if budget is None else contender.best(image, budget)
            if found is not None:
                known[str(budget)] = _to_json(found)
        if absent:
            text = json.dumps({"codec": contender.name, "version": contender.version, "found": known}, indent=1)
            try:
                write_atomic(path, text.encode())
            except OutputError as error:
                self.problem = str(error)
        return {budget: _from_json(known[str(budget)]) for budget in budgets if str(budget) in known}

    def _path(self, contender: Contender, image: Image.Image) -> Path:
        key = sha256(f"{VERSION} {contender.version} {image.size} ".encode() + image.tobytes()).hexdigest()
        return self.folder / contender.name / f"{key[:32]}.json"


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
