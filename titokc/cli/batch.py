"""What `encode` and `decode` share: does what `titokc.cli.plan` planned, one file after another, and reports it.

The conversion itself is `titokc.codec`'s, writing `titokc.files`'.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from titokc.cli.options import BatchOptions
from titokc.cli.plan import Task, is_taken
from titokc.cli.report import Progress, Report
from titokc.cli.streams import write_result
from titokc.errors import OutputError, TitokcError, UsageError


def run(
    tasks: Sequence[Task],
    convert: Callable[[list[Path | bytes]], Iterator[Any]],
    to_bytes: Callable[[Any, Task], bytes],
    describe: Callable[[bytes, Any], dict[str, Any]],
    options: BatchOptions,
    notes: Sequence[str],
    read_stdin: Callable[[], bytes],
    tell: Callable[[dict[str, Any]], str],
    progress: Progress,
    check: Callable[[Path], object] = lambda _: None,
) -> int:
    """Converts all tasks through `convert` (results or TitokcErrors, in order), writes, reports; the exit code.

    describe: the fields of a result in JSON; tell: the same in words, where the size of the result follows.
    An existing result is left alone (skipped, or an error, after `check` of its input) unless `options.force`.
    """
    if options.as_json and any(task.target is None and task.problem is None for task in tasks):
        raise UsageError("--json and the result cannot share standard output")
    outcomes: dict[int, TitokcError | str] = {}
    sources: list[Path | bytes] = []
    for number, task in enumerate(tasks):
        outcome = task.problem or _existing(task, check, options.skip_existing, options.force)
        try:
            if outcome is None:
                sources.append(task.source or read_stdin())
        except TitokcError as error:
            outcome = error
        if outcome is not None:
            outcomes[number] = outcome
    report = Report(quiet=options.quiet, as_json=options.as_json)
    results = convert(sources)
    with progress.of(len(tasks)):
        for number, task in enumerate(tasks):
            outcome = outcomes.get(number)
            details: dict[str, Any] = {}
            if outcome is None:
                result = next(results)
                try:
                    if isinstance(result, TitokcError):
                        raise result
                    data = to_bytes(result, task)
                    write_result(task.target, data, overwrite=options.force)
                    outcome, details = "done", describe(data, result)
                    details |= {"notes": list(result.notes)} if result.notes else {}
                except TitokcError as error:
                    outcome = error
            progress.clear()
            report.add(task, outcome, details, tell(details) if details else "")
            for note in details.get("notes", ()):
                report.note(note, task.name)
            progress.update()
    for note in notes:
        report.note(note)
    report.summarise(tasks)
    return report.exit_code


def _existing(task: Task, check: Callable[[Path], object], skip: bool, force: bool) -> TitokcError | str | None:
    """What an existing result means for its task; None where it is no obstacle."""
    if task.target is None or not is_taken(task.target):
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
