"""What `encode` and `decode` share: does what `titokc.cli.plan` planned, one file after another, and reports it.

The conversion itself is `titokc.codec`'s, writing `titokc.files`'.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from titokc.cli.options import BatchOptions
from titokc.cli.plan import Task, is_taken
from titokc.cli.report import Progress, Report
from titokc.cli.streams import write_result
from titokc.errors import OutputError, TitokcError, UsageError


class Conversion(ABC):
    """From files of one kind to files of another: a verb says what is done with each, `run` does it with all.

    codec: of the model that was asked for. chosen: the verb's own options, as the codec takes them. report: of several
    conversions together.
    """

    def __init__(self, model: str | None, options: BatchOptions, report: Report | None = None, **chosen: Any) -> None:
        self.options = options
        self.chosen = chosen
        self.report = report or Report(quiet=options.quiet, as_json=options.as_json)
        self.progress = Progress(options.quiet)
        self.codec = options.codec(model, self.progress.tiles)

    @abstractmethod
    def read_stdin(self) -> bytes:
        """What stands for a file. Raises TitokcError."""

    @abstractmethod
    def convert(self, sources: Iterable[Path | bytes]) -> Iterator[Any]:
        """A result for each, or a TitokcError, in order."""

    @abstractmethod
    def to_bytes(self, result: Any, target: Path | None) -> bytes:
        """The result as it is written. Raises TitokcError."""

    @abstractmethod
    def describe(self, result: Any, size: int) -> tuple[dict[str, Any], str]:
        """Of a result of `size` bytes: its fields in JSON, and in words what is said of it besides the size."""

    def check(self, source: Path) -> None:  # noqa: B027 - most know nothing
        """Raises TitokcError for an input that could not be converted, if that is soon known."""

    def run(self, tasks: Sequence[Task], notes: Sequence[str]) -> int:
        """Converts all, writes, reports; the exit code. An existing result is left alone (skipped, or an error, after
        `check` of its input) unless `options.force`."""
        if self.options.as_json and any(task.target is None and task.problem is None for task in tasks):
            raise UsageError("--json and the result cannot share standard output")
        sources = [self._source(task) for task in tasks]
        results = self.convert([source for source in sources if isinstance(source, (Path, bytes))])
        with self.progress.of(len(tasks)):
            for task, source in zip(tasks, sources, strict=True):
                self.finish(task, next(results) if isinstance(source, (Path, bytes)) else source)
                self.progress.update()
        for note in notes:
            self.report.note(note)
        self.report.summarise(tasks)
        return self.report.exit_code

    def is_done(self, task: Task) -> bool:
        """Whether a result that exists already will do. OutputError for one that is in the way."""
        if task.target is None or not is_taken(task.target):
            return False
        is_input = task.source is not None and task.source.exists() and task.target.samefile(task.source)
        if not is_input and (self.options.force or self.options.skip_existing):
            return not self.options.force
        if task.source:
            self.check(task.source)
        if is_input:
            raise OutputError("the result would take the place of its own input: say where with -o")
        raise OutputError(f"{task.target} exists: --force overwrites it, --skip-existing leaves it out")

    def finish(self, task: Task, result: Any) -> None:
        """Writes the result, if it is one, and says what became of the task."""
        outcome: TitokcError | str = "skipped"
        fields: dict[str, Any] = {}
        words = ""
        try:
            if isinstance(result, TitokcError):
                raise result
            if result is not None:
                data = self.to_bytes(result, task.target)
                write_result(task.target, data, overwrite=self.options.force)
                fields, words = self.describe(result, len(data))
                fields |= {"notes": list(result.notes)} if result.notes else {}
                outcome = "done"
        except TitokcError as error:
            outcome = error
        self.progress.clear()
        self.report.add(task, outcome, fields, words)
        for note in fields.get("notes", ()):
            self.report.note(note, task.name)

    def _source(self, task: Task) -> Path | bytes | TitokcError | None:
        """What is to be converted, or why nothing is; None: an existing result is left alone."""
        try:
            if task.problem:
                raise task.problem
            if self.is_done(task):
                return None
            return task.source or self.read_stdin()
        except TitokcError as error:
            return error
