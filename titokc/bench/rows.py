"""rows.jsonl: one line for each picture, codec and point, written as they are made, so that a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from titokc.errors import InputError, UsageError

Row = dict[str, Any]
Key = tuple[str, str, str, int | None]

EQUAL_BYTES = "equal-bytes"
FLOOR = "floor"


def key_of(row: Row) -> Key:
    return row["image"], row["codec"], row["view"], row["budget"]


class Rows:
    """The rows of a report's folder. A row replaces an older one of the same picture, codec, view and budget."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rows.jsonl"
        self._rows: dict[Key, Row] = {}
        if self.path.exists():
            self._read()

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: Key) -> Row | None:
        return self._rows.get(key)

    def add(self, row: Row) -> None:
        self._rows[key_of(row)] = row
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")

    def check(self, image: str, digest: str, crop: str, versions: dict[str, str]) -> None:
        """UsageError if the rows of this picture were made from other pixels, or by other versions of the codecs."""
        for row in self:
            if row["crop"] != crop:
                self._refuse(f"its pictures were cropped as {row['crop']}, not {crop}")
            if row["image"] == image and row["digest"] != digest:
                self._refuse(f"{image} was another picture then")
            if row["version"] != versions.get(row["codec"], row["version"]):
                self._refuse(f"{row['codec']} was {row['version']} then and is {versions[row['codec']]} now")

    def _refuse(self, why: str) -> None:
        raise UsageError(f"{self.path.parent} holds another run ({why}): give another folder, or --restart")

    def _read(self) -> None:
        text = self.path.read_text(encoding="utf-8")
        whole, _, torn = text.rpartition("\n")
        if torn:  # a stop in the middle of a line
            self.path.write_text(whole + "\n" if whole else "", encoding="utf-8")
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
                self._rows[key_of(row)] = row
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{self.path}, line {number}: not a row of a benchmark ({error})") from error
