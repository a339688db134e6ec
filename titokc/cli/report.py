"""What the command line says: lines that a terminal can show, and what became of each file and of all of them."""

import errno
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from titokc.cli.plan import Task
from titokc.errors import LimitExceededError, TitokcError
from titokc.files import reason

# Control characters, line separators, what turns the direction of writing, and bytes that are no UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    """On one line, and nothing in it that a terminal would act on: names come from strangers."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], str(text))


def say(text: str) -> None:
    """A line on standard error."""
    click.echo(printable(text), err=True)


def complain(message: str, name: object = "") -> None:
    """The one form of an error: "titokc: NAME: MESSAGE" on standard error."""
    say(f"titokc: {f'{printable(name)}: ' if name else ''}{' '.join(message.split())}")


def put(text: str) -> None:
    """Lines on standard output, as they are but for characters that it cannot hold. Raises what `put_bytes` does."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    put_bytes((text + "\n").encode(encoding, "backslashreplace"))


def put_bytes(data: bytes) -> None:
    """To standard output. Raises OSError, with its name, which ends the whole run: nobody would see the rest."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, "closed", "standard output")
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, reason(error), "standard output") from error


def message_of(error: TitokcError) -> str:
    """The error's own words, and the option that allows more where a limit was exceeded."""
    if isinstance(error, LimitExceededError) and error.limit:
        return f"{error} (--{error.limit.replace('_', '-')} allows more)"
    return str(error)


class Progress:
    """A bar on standard error, if that is a terminal: of pictures, or of the tiles of a single one."""

    def __init__(self, quiet: bool) -> None:
        self._off = quiet or sys.stderr is None or not sys.stderr.isatty()
        self._pictures = 0
        self._bar: Any = None

    @contextmanager
    def of(self, pictures: int) -> Iterator[None]:
        self._pictures = pictures
        if pictures > 1:
            self._start(pictures, " pictures")
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.close()

    def tiles(self, done: int, total: int) -> None:
        """What a `titokc.Codec` calls for each picture, from any thread."""
        if self._pictures == 1 and total > 1:
            if self._bar is None:
                self._start(total, " tiles")
            if self._bar is not None:
                self._bar.total = total
                self._bar.update(done - self._bar.n)

    def update(self) -> None:
        if self._bar is not None and self._pictures > 1:
            self._bar.update()

    def clear(self) -> None:
        """Makes room for a line of text."""
        if self._bar is not None:
            self._bar.clear()

    def _start(self, total: int, unit: str) -> None:
        if not self._off:
            from tqdm import tqdm  # takes longer than refusing a foreign file

            # A terminal that does not know its size has 0 columns, in which tqdm shows nothing.
            known = all(os.get_terminal_size(sys.stderr.fileno()))
            size = {} if known else {"ncols": 80, "nrows": 24}
            self._bar = tqdm(total=total, unit=unit, leave=False, **size)


class Report:
    """Counts what became of each file and says so: errors and summary on stderr, JSON on stdout."""

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self.quiet = quiet
        self.as_json = as_json
        self.counts: Counter[str] = Counter()
        self.error_codes: set[int] = set()
        self.bytes_written = 0
        self.last = ""
        self.start = time.monotonic()

    def note(self, text: str, name: object = "") -> None:
        """What is not wrong, but not what one might think either."""
        if not self.quiet:
            say(f"note: {f'{printable(name)}: ' if name else ''}{text}")

    def add(self, task: Task, outcome: TitokcError | str, details: dict[str, Any], text: str = "") -> None:
        """`outcome`: "done" (with `details`, also `file_bytes`, and the rest as `text`), "skipped" or an error."""
        row: dict[str, Any] = {"input": task.name, "output": str(task.target) if task.target else None}
        if isinstance(outcome, TitokcError):
            row |= self.fail(task.name, outcome)
        else:
            row |= {"status": outcome, **details}
            self.counts[outcome] += 1
            self.bytes_written += details.get("file_bytes", 0)
        self.last = text
        if self.as_json:
            put(json.dumps(row))

    def fail(self, name: str, error: TitokcError) -> dict[str, Any]:
        """Counts and says it; its fields in a JSON row."""
        message = message_of(error)
        self.counts["failed"] += 1
        self.error_codes.add(error.exit_code)
        complain(message, name)
        return {"status": "failed", "error": message, "exit_code": error.exit_code}

    def summarise(self, tasks: Sequence[Task]) -> None:
        if self.quiet or self.as_json:
            return
        if len(tasks) == 1:
            task = tasks[0]
            if self.counts["done"] and task.target:
                say(f"{printable(task.name)} -> {task.target}: {self.last}, {self.bytes_written:,} bytes")
            elif self.counts["skipped"]:
                say(f"{task.target} exists: skipped")
            return
        parts = [f"{self.counts[status]} {status}" for status in ("done", "skipped", "failed")]
        seconds = time.monotonic() - self.start
        rate = f" ({self.counts['done'] / seconds:.1f} a second)" if self.counts["done"] else ""
        say(f"{', '.join(parts)}: {self.bytes_written:,} bytes in {seconds:.1f} s{rate}")

    @property
    def exit_code(self) -> int:
        """0 if nothing failed, the errors' own code if nothing else happened, else 1."""
        if not self.error_codes:
            return 0
        alone = len(self.error_codes) == 1 and set(self.counts) == {"failed"}
        return min(self.error_codes) if alone else 1
