"""What the folder of a report holds: rows.jsonl, a line for each picture, codec and point, written as they are made, so
that a stopped run goes on; sets.json and environment.json; and the decoded pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from titokc.errors import InputError, OutputError, UsageError
from titokc.files import reason, write_atomic

Row = dict[str, Any]
Key = tuple[str, str, str, int | None]

EQUAL_BYTES = "equal-bytes"
FLOOR = "floor"


WRITTEN = ("summary.json", "summary.csv", "report.html", "sets.json", "environment.json")


class Report(NamedTuple):
    """Of one run: the rows of the pictures that it was asked for, what is said of sets, and the environment."""

    rows: list[Row]
    sets: list[dict[str, Any]]
    environment: dict[str, Any]


def read_report(folder: Path) -> Report:
    """rows.jsonl, sets.json and environment.json of a folder. Raises InputError if it holds no rows."""
    rows, environment = list(Rows(folder)), read_json(folder / "environment.json", {})
    if not rows:
        raise InputError(f"{folder}: no rows of a benchmark in it (rows.jsonl)")
    if names := set(environment.get("images", [])):
        rows = [row for row in rows if row["image"] in names]
    return Report(rows, read_json(folder / "sets.json", []), environment)


def check_output(folder: Path) -> None:
    """UsageError for a folder with files of the names that a report has, but without a benchmark's rows."""
    names = [name for name in (*WRITTEN, "plots") if (folder / name).exists()]
    if names and not (folder / "rows.jsonl").exists():
        raise UsageError(f"{folder} holds {names[0]}, but no benchmark (rows.jsonl): give another folder")


def picture_path(output: Path, codec: str, budget: int | None, name: str) -> Path:
    """Where a decoded picture is kept; codec "original" for what was encoded, budget None for the floor."""
    point = [] if codec == "original" else [FLOOR if budget is None else str(budget)]
    return output.joinpath("pictures", codec.replace(":", "-"), *point, f"{name}.png")


def read_json(path: Path, default: Any) -> Any:
    """What a JSON file of a report holds, of the type of `default`, which stands for a file that is not there."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else default
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not JSON ({error}): remove it, and the next run makes it again") from error
    if not isinstance(found, type(default)):
        raise InputError(f"{path}: not of a benchmark: remove it, and the next run makes it again")
    return found


def write_json(path: Path, content: Any) -> None:
    write_atomic(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


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
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {reason(error)}") from error

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
