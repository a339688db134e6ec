"""A benchmark run: pictures x codecs x points -> rows, then sets, memory, environment, all in the report's folder.

Searches of baselines go first, in parallel, into a cache. Then this process encodes and decodes a picture with every
codec, one after the other with nothing beside it, as that is timed; and several processes measure what came out.
`titokc.bench.summary` and `titokc.bench.report` make tables and pages of it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from titokc.bench import images, workers
from titokc.bench.codecs import TitokModel, open_codec
from titokc.bench.environment import environment
from titokc.bench.interface import Codec, Format, Placeholder, Point
from titokc.bench.memory import peak_memory_mb
from titokc.bench.rows import EQUAL_BYTES, FLOOR, Key, Row, Rows, key_of
from titokc.bench.search import Cache, Found, enlarged
from titokc.errors import InputError, TitokcError, UsageError
from titokc.files import write_atomic
from titokc.judge.table import USUAL, Judge, Networks

DEFAULT_BUDGETS = (60, 108, 156, 204)

Progress = Callable[[str, int, int], None]


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "titokc" / "bench"


@dataclass(frozen=True)
class Settings:
    """What is measured, and how. `codecs` are specs as `open_codec` takes them; `restart` forgets earlier rows."""

    source: Path
    output: Path
    codecs: tuple[str, ...]
    budgets: tuple[int, ...] = DEFAULT_BUDGETS
    crop: str = images.CENTER_SQUARE
    metrics: tuple[str, ...] = USUAL
    limit: int | None = None
    jobs: int = 1
    restart: bool = False
    device: str = "auto"
    weights: Path | None = None
    download: bool = False
    cache: Path = field(default_factory=default_cache)


@dataclass
class Outcome:
    """Pictures that could not be measured, with the reason, and metrics that could not run, with theirs."""

    failed: dict[str, str]
    unavailable: dict[str, str]


def run(settings: Settings, progress: Progress = lambda *_: None) -> Outcome:
    """Measures what is not in the folder's rows yet. `progress`: called with a phase, what is done, and of how many."""
    found = images.find(settings.source, settings.limit)
    codecs = _open_all(settings)
    measures = Judge(settings.metrics, Networks(settings.device, settings.weights, download=settings.download))
    settings.output.mkdir(parents=True, exist_ok=True)
    if settings.restart:
        for name in ("rows.jsonl", "sets.json", "environment.json"):
            (settings.output / name).unlink(missing_ok=True)
    rows = Rows(settings.output)
    failed = {}
    with workers.workers(settings.jobs) as pool:
        bench = _Bench(settings, codecs, measures, rows, pool)
        bench.check_first(found)
        bench.search(found, progress)
        for done, (name, path) in enumerate(found):
            progress("measuring", done, len(found))
            try:
                bench.measure(name, path)
            except InputError as error:
                failed[name] = str(error)
        progress("measuring", len(found), len(found))
        bench.measure_sets([name for name, _ in found if name not in failed], progress)
    _write_json(settings.output / "environment.json", bench.environment(len(found) - len(failed)))
    return Outcome(failed, measures.unavailable)


def _open_all(settings: Settings) -> dict[str, Codec]:
    """Specs -> codecs. UsageError for two of one name."""
    codecs = {spec: open_codec(spec, settings.device) for spec in settings.codecs}
    names = [codec.name for codec in codecs.values()]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"two codecs named {twice.pop()}: name them with LABEL=PATH")
    return codecs


class _Bench:
    def __init__(
        self, settings: Settings, codecs: dict[str, Codec], measures: Judge, rows: Rows, pool: Executor
    ) -> None:
        self.settings = settings
        self.codecs = codecs
        self.measures = measures
        self.rows = rows
        self.pool = pool
        self.cache = Cache(settings.cache)
        self.warm: set[str] = set()

    def check_first(self, found: Sequence[tuple[str, Path]]) -> None:
        """Refuses a folder of another run before anything is computed, as far as the first readable picture shows."""
        versions = {codec.name: codec.version for codec in self.codecs.values()}
        for name, path in found if len(self.rows) else ():
            try:
                digest = images.digest(images.load(path, self.settings.crop))
            except InputError:
                continue
            self.rows.check(name, digest, self.settings.crop, versions)
            break

    def search(self, found: Sequence[tuple[str, Path]], progress: Progress) -> None:
        """The best files of the baselines, into the cache."""
        settings = self.settings
        jobs = [
            (path, settings.crop, spec, settings.budgets, settings.cache)
            for name, path in found
            for spec, codec in self.codecs.items()
            if not isinstance(codec, TitokModel) and any(self._missing(key) for key in self._keys(name, codec))
        ]
        progress("searching", 0, len(jobs))
        futures = [self.pool.submit(workers.search, *job) for job in jobs]
        for done, future in enumerate(as_completed(futures), 1):
            future.result()
            progress("searching", done, len(jobs))

    def measure(self, name: str, path: Path) -> None:
        """All rows of a picture that are not there yet. Raises InputError if it cannot be read."""
        wanted = [(codec, key) for codec in self.codecs.values() for key in self._keys(name, codec)]
        wanted = [(codec, key) for codec, key in wanted if self._missing(key)]
        if not wanted:
            return
        original = images.load(path, self.settings.crop)
        digest = images.digest(original)
        self.rows.check(name, digest, self.settings.crop, {codec.name: codec.version for codec in self.codecs.values()})
        kept = self._picture_path("original", None, name)
        _save_picture(original, kept)
        rows = [self._coded(codec, key, original) for codec, key in wanted]
        common = (*self._measuring("picture"), kept)
        values = [
            self.pool.submit(workers.measure, *common, self._picture_path(row["codec"], row["budget"], name))
            for row in rows
            if row["reason"] is None
        ]
        for row in rows:
            measured = values.pop(0).result() if row["reason"] is None else {}
            row = {"image": name, "digest": digest, "crop": self.settings.crop} | row
            before = self.rows.get(key_of(row)) or {}
            # Of the same file: the metrics of an earlier run stay.
            same = all(before.get(field) == row[field] for field in ("digest", "point", "bytes"))
            self.rows.add((before if same else {}) | row | measured)

    def _measuring(self, what: str) -> tuple[tuple[str, ...], str, Path | None]:
        """The metrics of "picture" or "set", and what else a worker needs to know of them."""
        return tuple(self.measures.names_of(what)), self.settings.device, self.settings.weights

    def _keys(self, name: str, codec: Codec) -> list[Key]:
        keys: list[Key] = [(name, codec.name, EQUAL_BYTES, budget) for budget in self.settings.budgets]
        return [*keys, (name, codec.name, FLOOR, None)] if isinstance(codec, Format) else keys

    def _missing(self, key: Key) -> bool:
        """Whether a row is not there yet, or lacks a metric or its pictures (which rows alone in a folder have not)."""
        row = self.rows.get(key)
        if row is None or row["reason"] is not None:
            return row is None
        name, codec, _, budget = key
        pictures = (self._picture_path("original", None, name), self._picture_path(codec, budget, name))
        return any(metric not in row for metric in self.measures.names_of("picture")) or not all(
            path.exists() for path in pictures
        )

    def _coded(self, codec: Codec, key: Key, original: Image.Image) -> Row:
        """A row without its metrics; the decoded picture is saved."""
        _, _, view, budget = key
        row: Row = {"width": original.width, "height": original.height, "codec": codec.name}
        row |= {"kind": "model" if isinstance(codec, TitokModel) else "baseline", "version": codec.version}
        row |= {"view": view, "budget": budget}
        found = self._best(codec, original, budget)
        if isinstance(found, str):
            return row | {"reason": found, "point": None, "enlarge": None, "bytes": None, "bpp": None, "ratio": None}
        point, enlarge, expected = found
        if codec.name not in self.warm:  # the first use loads libraries, and a model's kernels
            codec.decode(codec.encode(original, point))
            self.warm.add(codec.name)
        start = time.perf_counter()
        data = codec.encode(original, point)
        encoded = time.perf_counter()
        picture = enlarged(codec.decode(data), original.size, enlarge or "bicubic")
        picture.load()
        decoded = time.perf_counter()
        if expected is not None and data != expected:
            raise TitokcError(f"{codec.name} makes other files than those in {self.settings.cache}: delete that folder")
        _save_picture(picture, self._picture_path(codec.name, budget, key[0]))
        pixels = original.width * original.height
        row |= {"reason": None, "point": point, "enlarge": enlarge}
        row |= {"bytes": len(data), "bpp": 8 * len(data) / pixels, "ratio": 3 * pixels / len(data)}
        return row | {"encode_ms": 1e3 * (encoded - start), "decode_ms": 1e3 * (decoded - encoded)}

    def _best(
        self, codec: Codec, original: Image.Image, budget: int | None
    ) -> tuple[Point, str | None, bytes | None] | str:
        """The point, the enlarging filter and the file that the search found; or why there is none."""
        if isinstance(codec, TitokModel):
            assert budget is not None
            try:
                return codec.best_point(original, budget), None, None
            except UsageError as error:
                return str(error)
        assert isinstance(codec, Format | Placeholder)
        if budget is None:
            assert isinstance(codec, Format)
            found = self.cache.floor_file(codec, original)
        else:
            found = self.cache.best_files(codec, original, [budget])[budget]
        if isinstance(found, Found):
            return found.point, found.enlarge, found.data
        if found.smallest is None:
            return "the format cannot hold a picture of this size"
        return f"the smallest file seen is {found.smallest} bytes"

    def measure_sets(self, names: Sequence[str], progress: Progress) -> None:
        """sets.json: one entry for each codec and budget that has a file of every picture."""
        if not names or not self.measures.names_of("set"):
            return
        path = self.settings.output / "sets.json"
        entries = {(entry["codec"], entry["budget"]): entry for entry in _read_json(path, [])}
        groups = [(codec, budget) for codec in self.codecs.values() for budget in self.settings.budgets]
        groups = [group for group in groups if self._set_is_missing(entries, group, names)]
        if not groups:
            return
        common = (*self._measuring("set"), self._pictures("original", None, names))
        jobs = [
            self.pool.submit(workers.measure_set, *common, self._pictures(codec.name, budget, names))
            for codec, budget in groups
        ]
        progress("comparing sets", 0, len(jobs))
        for done, ((codec, budget), job) in enumerate(zip(groups, jobs, strict=True), 1):
            entry = {"codec": codec.name, "version": codec.version, "budget": budget, "pictures": list(names)}
            entries[codec.name, budget] = entry | job.result()
            _write_json(path, list(entries.values()))
            progress("comparing sets", done, len(jobs))

    def _set_is_missing(
        self, entries: dict[tuple[str, int], dict[str, Any]], group: tuple[Codec, int], names: Sequence[str]
    ) -> bool:
        codec, budget = group
        rows = [self.rows.get((name, codec.name, EQUAL_BYTES, budget)) for name in names]
        if any(row is None or row["reason"] is not None for row in rows):
            return False
        entry = entries.get((codec.name, budget), {})
        known = entry.get("pictures") == list(names) and entry.get("version") == codec.version
        return not known or any(name not in entry for name in self.measures.names_of("set"))

    def environment(self, count: int) -> dict[str, Any]:
        """environment.json: versions, machine, settings, and each codec's peak memory."""
        settings = self.settings
        known = _read_json(settings.output / "environment.json", {})
        content = environment(list(self.codecs.values()), settings.device)
        content["codecs"] = known.get("codecs", {}) | content["codecs"]
        content |= {"crop": settings.crop, "pictures": count, "cores_used": settings.jobs}
        content["unavailable"] = self.measures.unavailable
        content["peak_memory"] = known.get("peak_memory", {})
        if "peak_memory" in settings.metrics:
            for spec, codec in self.codecs.items():
                if codec.name not in content["peak_memory"] and (row := self._largest_row(codec)):
                    picture = self._picture_path("original", None, row["image"])
                    content["peak_memory"][codec.name] = peak_memory_mb(spec, settings.device, picture, row["point"])
        return content

    def _largest_row(self, codec: Codec) -> Row | None:
        rows = [row for row in self.rows if row["codec"] == codec.name and row["reason"] is None]
        return max(rows, key=lambda row: row["width"] * row["height"], default=None)

    def _picture_path(self, codec: str, budget: int | None, name: str) -> Path:
        return picture_path(self.settings.output, codec, budget, name)

    def _pictures(self, codec: str, budget: int | None, names: Sequence[str]) -> tuple[Path, ...]:
        return tuple(self._picture_path(codec, budget, name) for name in names)


def picture_path(output: Path, codec: str, budget: int | None, name: str) -> Path:
    """Where a decoded picture is kept; codec "original" for what was encoded, budget None for the floor."""
    point = [] if codec == "original" else [FLOOR if budget is None else str(budget)]
    return output.joinpath("pictures", codec, *point, f"{name}.png")


def _save_picture(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, compress_level=4)


def _read_json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def _write_json(path: Path, content: Any) -> None:
    write_atomic(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
