"""What `encode` and `decode` share: which files, where their results go, progress, report and exit code.

The conversion itself is `titokc.codec`'s, writing `titokc.files`'.
"""

import glob
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import Any

import click

from titokc.codec import DEFAULT_BATCH_SIZE, Codec
from titokc.errors import InputError, OutputError, TitokcError, UsageError
from titokc.files import reason, write_atomic
from titokc.limits import DEFAULT_LIMITS, Limits

STREAM = "-"
# The codec's forms and the suffixes of their files.
SUFFIXES = {"tok": ".tok", "bare": ".bin", "base64": ".txt"}


@dataclass(frozen=True)
class Task:
    """One input and where its result goes; None is standard input and output. `problem`: why it cannot be done."""

    name: str
    source: Path | None
    target: Path | None
    problem: TitokcError | None = None


@dataclass(frozen=True)
class Naming:
    """How results are named: inputs of a folder have one of `suffixes`, a result `new_suffix` instead."""

    suffixes: frozenset[str]
    new_suffix: str


@dataclass(frozen=True)
class BatchOptions:
    """What `batch_options` collects: how the model runs, what is refused, and what is written and said."""

    device: str
    dtype: str | None
    batch_size: int
    threads: int | None
    limits: Limits
    skip_existing: bool
    force: bool
    as_json: bool
    quiet: bool

    def codec(self, model: str | None) -> Codec:
        """The codec that these options ask for; nothing is loaded yet."""
        return Codec(
            model,
            device=self.device,
            dtype=self.dtype,
            batch_size=self.batch_size,
            threads=self.threads,
            limits=self.limits,
        )


def plan(inputs: Sequence[str], output: str | None, naming: Naming) -> list[Task]:
    """Files, folders, globs and "-" -> tasks, in order; trees are mirrored into the output folder.

    Without an output results lie beside their inputs. Two inputs with one result are problems, both of them.
    """
    found = [file for text in inputs for file in _expand(text, naming)]
    several = len(found) > 1 or any(file.inside for file in found)
    into_folder = output not in (None, STREAM) and (several or is_folder(str(output)))
    if output == STREAM and several:
        raise UsageError("standard output takes the result of one input")
    if into_folder and Path(str(output)).is_file():
        raise UsageError(f"{output} is a file, and the results of several inputs need a folder")

    def target_of(file: _Found) -> Path | None:
        if into_folder:
            inside = file.inside or Path(file.source.name if file.source else "stdin")
            return Path(str(output)) / inside.with_suffix(naming.new_suffix)
        if output is None:
            return file.source.with_suffix(naming.new_suffix) if file.source else None
        return None if output == STREAM else Path(output)

    return _refuse_collisions(
        [Task(file.name, file.source, None if file.problem else target_of(file), file.problem) for file in found]
    )


def run(
    tasks: Sequence[Task],
    convert: Callable[[list[Path | bytes]], Iterator[Any]],
    to_bytes: Callable[[Any, Task], bytes],
    describe: Callable[[bytes, Any], dict[str, Any]],
    options: "BatchOptions",
    check: Callable[[Path], object] = lambda _: None,
    longest_input: int = -1,
) -> int:
    """Converts all tasks through `convert` (results or TitokcErrors, in order), writes, reports; the exit code.

    An existing result is left alone (skipped, or an error, after `check` of its input) unless `options.force`.
    longest_input: bytes of standard input that are worth reading, -1 for all.
    """
    if options.as_json and any(task.target is None and task.problem is None for task in tasks):
        raise UsageError("--json and the result cannot share standard output")
    outcomes: dict[int, TitokcError | str] = {}
    pending = []
    for number, task in enumerate(tasks):
        outcome = task.problem or _existing(task, check, options.skip_existing, options.force)
        if outcome is None:
            pending.append(task)
        else:
            outcomes[number] = outcome
    report = Report(quiet=options.quiet, as_json=options.as_json)
    results = convert(
        [sys.stdin.buffer.read(longest_input) if task.source is None else task.source for task in pending]
    )
    with _progress_bar(len(tasks), options.quiet) as bar:
        for number, task in enumerate(tasks):
            outcome = outcomes.get(number)
            details: dict[str, Any] = {}
            if outcome is None:
                result = next(results)
                try:
                    if isinstance(result, TitokcError):
                        raise result
                    data = to_bytes(result, task)
                    write_result(task.target, data)
                    outcome, details = "done", describe(data, result)
                except TitokcError as error:
                    outcome = error
            if bar is not None:
                bar.clear()
            report.add(task, outcome, details)
            if bar is not None:
                bar.update()
    report.summarise(tasks)
    return report.exit_code


class Report:
    """Counts what became of each file and says so: errors and summary on stderr, JSON on stdout."""

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self.quiet = quiet
        self.as_json = as_json
        self.counts: Counter[str] = Counter()
        self.error_codes: set[int] = set()
        self.bytes_written = 0
        self.start = time.monotonic()

    def add(self, task: Task, outcome: TitokcError | str, details: dict[str, Any]) -> None:
        """`outcome`: "done" (with `details`, that say its `file_bytes`), "skipped", or an error."""
        row: dict[str, Any] = {"input": task.name, "output": str(task.target) if task.target else None}
        if isinstance(outcome, TitokcError):
            self.error_codes.add(outcome.exit_code)
            row |= {"status": "failed", "error": str(outcome), "exit_code": outcome.exit_code}
            click.echo(f"titokc: {task.name}: {outcome}", err=True)
        else:
            row |= {"status": outcome, **details}
            self.bytes_written += details.get("file_bytes", 0)
        self.counts[row["status"]] += 1
        if self.as_json:
            click.echo(json.dumps(row))

    def summarise(self, tasks: Sequence[Task]) -> None:
        if self.quiet or self.as_json:
            return
        if len(tasks) == 1:
            if self.counts["done"] and tasks[0].target:
                click.echo(f"{tasks[0].name} -> {tasks[0].target}: {self.bytes_written:,} bytes", err=True)
            elif self.counts["skipped"]:
                click.echo(f"{tasks[0].target} exists: skipped", err=True)
            return
        parts = [f"{self.counts[status]} {status}" for status in ("done", "skipped", "failed")]
        seconds = time.monotonic() - self.start
        click.echo(f"{', '.join(parts)}: {self.bytes_written:,} bytes in {seconds:.1f} s", err=True)

    @property
    def exit_code(self) -> int:
        """0 if nothing failed, the errors' own code if nothing else happened, else 1."""
        if not self.error_codes:
            return 0
        alone = len(self.error_codes) == 1 and set(self.counts) == {"failed"}
        return self.error_codes.pop() if alone else 1


def batch_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every verb that runs a model over files, given to `function` as `options`, a BatchOptions."""
    names = {field.name for field in fields(BatchOptions)}

    @wraps(function)
    def collected(**given: Any) -> Any:
        options = BatchOptions(**{name: given.pop(name) for name in names})
        return function(options=options, **given)

    decorators: list[Callable[..., Any]] = [
        click.option(
            "--device", metavar="DEVICE", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."
        ),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16", "float16"]),
            help="Precision of the decoder. [default: float32, on CUDA bfloat16 or float16]",
        ),
        click.option(
            "--batch-size",
            metavar="N",
            type=click.IntRange(1),
            default=DEFAULT_BATCH_SIZE,
            show_default=True,
            help="Tiles at a time.",
        ),
        click.option("--threads", metavar="N", type=click.IntRange(1), help="CPU threads. [default: all cores]"),
        limit_options,
        click.option("--skip-existing", is_flag=True, help="Leave out inputs whose result exists already."),
        click.option("--force", is_flag=True, help="Overwrite results that exist (otherwise that is an error)."),
        click.option("--json", "as_json", is_flag=True, help="One JSON object per file on stdout."),
        click.option("-q", "--quiet", is_flag=True, help="No progress bar and no summary; errors only."),
    ]
    decorated: Callable[..., Any] = collected
    for decorator in reversed(decorators):
        decorated = decorator(decorated)
    return decorated


def limit_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--max-pixels and the like, what a picture or header may declare at most, given to `function` as `limits`."""

    @wraps(function)
    def collected(max_pixels: int, max_side: int, max_indices: int, **given: Any) -> Any:
        return function(limits=Limits(max_pixels, max_side, max_indices), **given)

    decorated: Callable[..., Any] = collected
    for name, default, text in (
        ("--max-indices", DEFAULT_LIMITS.max_indices, "Refuse files with more tokens."),
        ("--max-side", DEFAULT_LIMITS.max_side, "The same for width and for height."),
        ("--max-pixels", DEFAULT_LIMITS.max_pixels, "Refuse pictures with more."),
    ):
        option = click.option(name, metavar="N", type=click.IntRange(1), default=default, show_default=True, help=text)
        decorated = option(decorated)
    return decorated


def form_of(bare: bool, base64: bool) -> str:
    """The codec's name of what --bare and --base64 ask for."""
    if bare and base64:
        raise UsageError("--bare and --base64 are two forms of the same payload: choose one")
    return "bare" if bare else "base64" if base64 else "tok"


@dataclass(frozen=True)
class _Found:
    """A file that an argument means; `inside`: its path below the folder that was searched."""

    name: str
    source: Path | None = None
    inside: Path | None = None
    problem: TitokcError | None = None


def _expand(text: str, naming: Naming) -> list[_Found]:
    path = Path(text)
    if text == STREAM:
        return [_Found("stdin")]
    if not text:
        return [_Found(text, problem=InputError("an empty name"))]
    if os.path.isdir(text):  # noqa: PTH112 - Path's own raises for long names
        return _search(path, naming)
    if glob.has_magic(text) and not os.path.exists(text):  # noqa: PTH110 - the same
        matches = glob.glob(text, recursive=True)  # noqa: PTH207 - absolute patterns too
        files = sorted(file for file in map(Path, matches) if not file.is_dir())
        nothing = InputError("no file matches")
        return [_Found(str(file), file, Path(file.name)) for file in files] or [_Found(text, problem=nothing)]
    return [_Found(text, path)]


def _search(folder: Path, naming: Naming) -> list[_Found]:
    """What a folder holds, in all its subfolders, hidden files left out."""
    unreadable: list[_Found] = []

    def fail(error: OSError) -> None:
        unreadable.append(_Found(str(error.filename), problem=InputError(f"cannot be read: {reason(error)}")))

    paths = [Path(parent, name) for parent, _, names in os.walk(folder, onerror=fail) for name in names]
    files = sorted(path for path in paths if path.suffix.lower() in naming.suffixes and path.name[0] != ".")
    nothing = InputError(f"no file in this folder ends in {', '.join(sorted(naming.suffixes))}")
    found = [_Found(str(file), file, file.relative_to(folder)) for file in files] + unreadable
    return found or [_Found(str(folder), problem=nothing)]


def is_folder(output: str) -> bool:
    """Whether -o means a folder, there or not, to write into."""
    return output.endswith(("/", os.sep)) or os.path.isdir(output)  # noqa: PTH112 - Path's own raises for long names


def _refuse_collisions(tasks: list[Task]) -> list[Task]:
    sharing: dict[Path, list[str]] = {}
    for task in tasks:
        if task.target:
            sharing.setdefault(task.target, []).append(task.name)
    problems = {
        target: OutputError(f"{target} would be the result of {' and '.join(names[:3])}")
        for target, names in sharing.items()
        if len(names) > 1
    }
    return [replace(task, problem=problems[task.target]) if task.target in problems else task for task in tasks]


def _existing(task: Task, check: Callable[[Path], object], skip: bool, force: bool) -> TitokcError | str | None:
    """What an existing result means for its task; None where it is no obstacle."""
    if task.target is None or not os.path.exists(task.target):  # noqa: PTH110 - raises for long names
        return None
    is_input = task.source is not None and task.source.exists() and task.target.samefile(task.source)
    if not is_input and (force or skip):
        return None if force else "skipped"
    try:
        if task.source:
            check(task.source)
    except TitokcError as error:
        return error
    if is_input:
        return OutputError("the result would take the place of its own input: say where with -o")
    return OutputError(f"{task.target} exists: --force overwrites it, --skip-existing leaves it out")


def _progress_bar(total: int, quiet: bool) -> AbstractContextManager[Any]:
    """On stderr if that is a terminal; importing tqdm takes longer than refusing a foreign file."""
    if quiet or total == 1 or not sys.stderr.isatty():
        return nullcontext()
    from tqdm import tqdm

    return tqdm(total=total, unit="file", leave=False)


def write_result(target: Path | None, data: bytes) -> None:
    """To a file, or for None to standard output, but no binary to a terminal."""
    if target:
        write_atomic(target, data)
        return
    if sys.stdout.isatty():
        if not data.isascii():
            raise OutputError("a terminal cannot show this: redirect standard output, or say where with -o")
        data += b"\n"
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
