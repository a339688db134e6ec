"""A benchmark run: pictures x contenders x budgets -> rows, then sets, memory, environment, all in the report's folder.

Searches of baselines go first, in parallel. Then this process encodes and decodes a picture with every contender, one
after the other with nothing beside it, as that is timed; and several processes measure what came out.
`titokc.bench.summary` and `titokc.bench.report` make tables and pages of it.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from titokc.bench import images, workers
from titokc.bench.contenders import open_contender
from titokc.bench.contenders.cache import default_cache
from titokc.bench.contenders.interface import Contender, Found, Impossible, enlarged
from titokc.bench.environment import environment
from titokc.bench.memory import peak_memory_mb
from titokc.bench.rows import (
    EQUAL_BYTES,
    FLOOR,
    Key,
    Row,
    Rows,
    check_output,
    key_of,
    picture_path,
    read_json,
    write_json,
)
from titokc.bench.workers import Measuring, failure
from titokc.errors import InputError, OutputError, TitokcError, UsageError
from titokc.files import reason
from titokc.imaging.shards import Source
from titokc.judge.table import USUAL, Judge, Networks

DEFAULT_BUDGETS = (60, 108, 156, 204)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """What is measured, and how. `codecs` are specs as `open_contender` takes them; `tiles` and `effort` those of
    `EncodeOptions`, for models; `restart` forgets earlier rows."""

    source: Path
    output: Path
    codecs: tuple[str, ...]
    budgets: tuple[int, ...] = DEFAULT_BUDGETS
    crop: str = images.CENTER_SQUARE
    tiles: str | None = None
    effort: int | None = None
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
    """Pictures and contenders that failed, with the reason; metrics that could not run, with theirs; what else to say.

    `measured`: whether the folder holds rows of any picture that was asked for.
    """

    failed: dict[str, str]
    unavailable: dict[str, str]
    notes: list[str]
    measured: bool


def run(settings: Settings, progress: Progress = lambda *_: None) -> Outcome:
    """Measures what is not in the folder's rows yet. `progress`: called with a phase, what is done, and of how many.

    The folder is made when the first picture has been read.
    """
    sources = images.find(settings.source, settings.limit, settings.output)
    contenders = _open_all(settings)
    check_output(settings.output)
    judge = Judge(settings.metrics, Networks(settings.device, settings.weights, download=settings.download))
    if settings.restart:
        for name in ("rows.jsonl", "sets.json", "environment.json"):
            (settings.output / name).unlink(missing_ok=True)
    with workers.workers(settings.jobs) as pool:
        bench = _Bench(settings, contenders, judge, pool)
        bench.check_first(sources)
        bench.search(sources, progress)
        for done, source in enumerate(sources):
            progress("measuring", done, len(sources))
            bench.measure(source)
        progress("measuring", len(sources), len(sources))
        names = [source.name for source in sources if source.name not in bench.failed]
        if names:
            bench.measure_sets(names, progress)
            write_json(settings.output / "environment.json", bench.environment(names))
    return Outcome(bench.failed | bench.failures, judge.unavailable, list(dict.fromkeys(bench.notes)), bool(names))


def _open_all(settings: Settings) -> dict[str, Contender]:
    """Specs -> contenders, each with its version, so that a model that is not there ends the run before it begins."""
    given = {"tiles": settings.tiles, "effort": settings.effort}
    encoding = {name: value for name, value in given.items() if value is not None}
    contenders = {spec: open_contender(spec, settings.device, **encoding) for spec in settings.codecs}
    names = [contender.name for contender in contenders.values()]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"two codecs named {twice.pop()}: name them with LABEL=PATH")
    _ = [contender.version for contender in contenders.values()]
    return contenders


class _Bench:
    def __init__(self, settings: Settings, contenders: dict[str, Contender], judge: Judge, pool: Executor) -> None:
        self.settings = settings
        self.contenders = contenders
        self.judge = judge
        self.pool = pool
        self.rows = Rows(settings.output)
        self.known_sets = read_json(settings.output / "sets.json", [])
        self.known = read_json(settings.output / "environment.json", {})
        self.searched: dict[tuple[str, str], workers.Searched] = {}  # by picture and contender
        self.warm: set[str] = set()
        self.made: dict[str, Any] = {}  # of the picture at hand, what several contenders share
        self.failed: dict[str, str] = {}
        self.failures: dict[str, str] = {}  # by picture and contender, as text
        self.notes: list[str] = []

    def check_first(self, sources: Sequence[Source]) -> None:
        """Refuses a folder of another run before anything is computed, as far as the first readable picture shows."""
        for source in sources if len(self.rows) else ():
            try:
                original = images.load(source, self.settings.crop)
            except InputError:
                continue
            self._check(source.name, original)
            break

    def search(self, sources: Sequence[Source], progress: Progress) -> None:
        """The best files of the baselines."""
        settings = self.settings
        jobs = {}
        for source in sources:
            for spec, contender in self.contenders.items():
                keys = self._missing(source.name, contender)
                if keys and contender.searched:
                    budgets = [key[-1] for key in keys]
                    job = self.pool.submit(workers.search, source, settings.crop, spec, budgets, settings.cache)
                    jobs[job] = (source.name, contender.name)
        progress("searching", 0, len(jobs))
        for done, job in enumerate(as_completed(jobs), 1):
            self.searched[jobs[job]] = job.result()
            if problem := job.result().problem:
                self.notes.append(f"searches are not kept for other runs (--cache names another place): {problem}")
            progress("searching", done, len(jobs))

    def measure(self, source: Source) -> None:
        """All rows of a picture that are not there yet."""
        wanted = [(each, key) for each in self.contenders.values() for key in self._missing(source.name, each)]
        if not wanted:
            return
        try:
            photo = images.read(source)
        except InputError as error:
            self.failed[source.name] = str(error)
            return
        original = images.cropped(photo, self.settings.crop)
        self._check(source.name, original)
        self.made = {}
        kept = self._picture_path("original", None, source.name)
        save(original, kept)
        common: Row = {"image": source.name, "digest": images.digest(original), "crop": self.settings.crop}
        common |= {"width": original.width, "height": original.height}
        common["enlarged"] = min(photo.size) < min(original.size)
        rows = [row for each, key in wanted if (row := self._coded(each, key, original)) is not None]
        rows = [common | row for row in rows]
        measuring = self._measuring("picture")
        values = {
            key_of(row): self.pool.submit(
                workers.measure, measuring, kept, self._picture_path(row["codec"], row["budget"], source.name)
            )
            for row in rows
            if row["reason"] is None
        }
        for row in rows:
            key = key_of(row)
            before = self.rows.get(key) or {}
            # Of the same file: the metrics of an earlier run stay.
            same = all(before.get(field) == row[field] for field in ("digest", "point", "bytes"))
            self.rows.add((before if same else {}) | row | (values[key].result() if key in values else {}))

    def _check(self, name: str, original: Image.Image) -> None:
        versions = {contender.name: contender.version for contender in self.contenders.values()}
        self.rows.check(name, images.digest(original), self.settings.crop, versions)

    def _missing(self, name: str, contender: Contender) -> list[Key]:
        """The rows that are not there yet, or lack a metric or their pictures (which rows alone in a folder have not).

        Of the floor only what has one can be missing: a contender without one answers None.
        """
        budgets: list[tuple[str, int | None]] = [(EQUAL_BYTES, budget) for budget in self.settings.budgets]
        if type(contender).floor is not Contender.floor:
            budgets.append((FLOOR, None))
        keys = [(name, contender.name, view, budget) for view, budget in budgets]
        return [key for key in keys if not self._is_there(key)]

    def _is_there(self, key: Key) -> bool:
        row = self.rows.get(key)
        if row is None or row["reason"] is not None:
            return row is not None
        pictures = (self._picture_path("original", None, key[0]), self._picture_path(key[1], key[3], key[0]))
        return all(metric in row for metric in self.judge.names_of("picture")) and all(p.exists() for p in pictures)

    def _coded(self, contender: Contender, key: Key, original: Image.Image) -> Row | None:
        """A row without its metrics; the decoded picture is saved. None if the contender fails, which is noted."""
        name, _, view, budget = key
        row: Row = {"codec": contender.name, "kind": contender.kind, "version": contender.version}
        row |= {"view": view, "budget": budget}
        searched = self.searched.get((name, contender.name))
        try:
            if searched is not None and searched.failure:
                raise InputError(searched.failure)
            if searched is not None:
                found = searched.found[budget]
            else:
                found = self._once(f"{contender.files} {budget}", lambda: self._found(contender, original, budget))
            if isinstance(found, Impossible):
                nothing = dict.fromkeys(("point", "enlarge", "bytes", "bpp", "ratio"))
                return row | {"reason": found.reason} | nothing
            return row | {"reason": None} | self._timed(contender, found, original, key)
        except OutputError:
            raise
        except Exception as error:  # noqa: BLE001 - one contender's failure does not end the others
            why = str(error) if isinstance(error, TitokcError) else failure(error)
            self.failures[f"{name}, {contender.name}"] = why
            return None

    def _found(self, contender: Contender, original: Image.Image, budget: int | None) -> Found | Impossible:
        if budget is None:
            return contender.floor(original) or Impossible(None)
        if contender.name not in self.warm:
            contender.best(original, budget)
        return contender.best(original, budget)[0]

    def _timed(self, contender: Contender, found: Found, original: Image.Image, key: Key) -> Row:
        point = found.point
        data, encode_ms = found.data, found.encode_ms
        if contender.name not in self.warm:  # the first use loads libraries, and a model's kernels
            contender.decode(data if encode_ms else contender.encode(original, point))
            self.warm.add(contender.name)
        if encode_ms is None:
            data, encode_ms = _clocked(contender.encode, original, point)
        if data != found.data:
            raise InputError(f"it makes other files than those in {self.settings.cache}: delete that folder")
        picture, decode_ms = _clocked(_decoded, contender, data, original.size, found.enlarge or "bicubic")
        save(picture, self._picture_path(contender.name, key[-1], key[0]))
        pixels = original.width * original.height
        row: Row = {"point": point, "enlarge": found.enlarge}
        row |= {"bytes": len(data), "bpp": 8 * len(data) / pixels, "ratio": 3 * pixels / len(data)}
        return row | {"encode_ms": encode_ms, "decode_ms": decode_ms}

    def _once(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once for a picture."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def measure_sets(self, names: Sequence[str], progress: Progress) -> None:
        """sets.json: one entry for each contender and budget that has a file of every picture."""
        measuring = self._measuring("set")
        if not measuring.metrics:
            return
        entries = {(entry["codec"], entry["budget"]): entry for entry in self.known_sets}
        originals = tuple(self._picture_path("original", None, name) for name in names)
        jobs = []
        for contender, budget in product(self.contenders.values(), self.settings.budgets):
            rows = [self.rows.get((name, contender.name, EQUAL_BYTES, budget)) for name in names]
            if any(row is None or row["reason"] is not None for row in rows):
                continue
            entry = {"codec": contender.name, "version": contender.version, "budget": budget, "pictures": list(names)}
            known = entries.get((contender.name, budget), {})
            if known.items() >= entry.items() and known.keys() >= set(measuring.metrics):
                continue
            made = tuple(self._picture_path(contender.name, budget, name) for name in names)
            jobs.append((entry, self.pool.submit(workers.measure_set, measuring, originals, made)))
        progress("comparing sets", 0, len(jobs))
        for done, (entry, job) in enumerate(jobs, 1):
            entries[entry["codec"], entry["budget"]] = entry | job.result()
            write_json(self.settings.output / "sets.json", list(entries.values()))
            progress("comparing sets", done, len(jobs))

    def environment(self, names: Sequence[str]) -> dict[str, Any]:
        """environment.json: versions, machine, settings, the pictures, and each contender's peak memory."""
        settings = self.settings
        content = environment(list(self.contenders.values()), settings.device)
        content["codecs"] = self.known.get("codecs", {}) | content["codecs"]
        content |= {"crop": settings.crop, "pictures": len(names), "images": list(names), "cores_used": settings.jobs}
        content["unavailable"] = self.judge.unavailable
        content["metric_weights"] = self.known.get("metric_weights", {}) | self.judge.weights
        content["peak_memory"] = self.known.get("peak_memory", {})
        if "peak_memory" in settings.metrics:
            for spec, contender in self.contenders.items():
                if contender.name not in content["peak_memory"] and (row := self._largest_row(contender)):
                    picture = self._picture_path("original", None, row["image"])
                    peak = peak_memory_mb(spec, settings.device, picture, row["point"])
                    content["peak_memory"][contender.name] = peak
        return content

    def _largest_row(self, contender: Contender) -> Row | None:
        rows = [row for row in self.rows if row["codec"] == contender.name and row["reason"] is None]
        return max(rows, key=lambda row: row["width"] * row["height"], default=None)

    def _measuring(self, what: str) -> Measuring:
        """The metrics of "picture" or "set", and what else a worker needs to know of them."""
        return Measuring(tuple(self.judge.names_of(what)), self.settings.device, self.settings.weights)

    def _picture_path(self, codec: str, budget: int | None, name: str) -> Path:
        return picture_path(self.settings.output, codec, budget, name)


def _clocked(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a call gives, and the milliseconds that it took."""
    start = time.perf_counter()
    return call(*arguments), 1e3 * (time.perf_counter() - start)


def _decoded(contender: Contender, data: bytes, size: tuple[int, int], enlarger: str) -> Image.Image:
    picture = enlarged(contender.decode(data), size, enlarger)
    picture.load()
    return picture


def save(picture: Image.Image, path: Path) -> None:
    """Not atomic, as a row is written only after its picture."""
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=4)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.getvalue())
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {reason(error)}") from error
