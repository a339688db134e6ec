"""Which files a command line means, and where each result goes; `titokc.cli.batch` then does what is planned."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from titokc.errors import InputError, OutputError, TitokcError, UsageError
from titokc.files import reason

STREAM = "-"
STDOUT_NAMES = frozenset({STREAM, "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"})


@dataclass(frozen=True)
class Task:
    """One input and where its result goes; None is standard input and output. `problem`: why it cannot be done."""

    name: str
    source: Path | None
    target: Path | None
    problem: TitokcError | None = None


@dataclass(frozen=True)
class Naming:
    """Files of a folder are inputs if they end in one of `suffixes`; a result gets `new_suffix` instead.

    written: all suffixes that results can have; several inputs with such an output are a mistake, not a folder.
    """

    suffixes: frozenset[str]
    new_suffix: str
    written: frozenset[str]


@dataclass(frozen=True)
class Found:
    """A file that an argument means; `inside`: its path below the folder that was searched."""

    name: str
    source: Path | None = None
    inside: Path | None = None
    problem: TitokcError | None = None


def plan(inputs: Sequence[str], output: str | None, naming: Naming) -> tuple[list[Task], list[str]]:
    """Files, folders, globs and "-" -> tasks, in order, and notes on what was left out or named in another way.

    Without an output results lie beside their inputs. In an output folder the tree of a folder is mirrored, of several
    folders below the name of each. Other files lie flat; where two would share a name, below the folder that all inputs
    have in common. Results that would still share a name keep their inputs' suffixes.
    """
    if output == "":
        raise UsageError("-o: an empty name")
    notes: list[str] = []
    found = find(inputs, naming.suffixes, notes, {naming.new_suffix})
    if output in STDOUT_NAMES:
        output = STREAM
    several = len(found) > 1 or any(file.inside for file in found)
    if output is not None and several:
        _check_folder(output, naming)
    into_folder = output not in (None, STREAM) and (several or is_folder(str(output)))
    usable = [file for file in found if file.problem is None]
    if output is not None and not into_folder:
        targets = [None if output == STREAM else Path(output) for _ in usable]
    else:
        targets = _targets(usable, Path(output) if output else None, naming.new_suffix, notes)
    waiting = iter(targets)
    tasks = [Task(file.name, file.source, None if file.problem else next(waiting), file.problem) for file in found]
    return _refuse_collisions(tasks), notes


def find(inputs: Sequence[str], suffixes: frozenset[str], notes: list[str], results: Iterable[str] = ()) -> list[Found]:
    """What the arguments mean, each file once. Of a folder: the regular files with one of `suffixes`, hidden ones and
    those of hidden folders left out; links to folders are followed. `notes` get how many files with other suffixes
    (than those of earlier `results`) were left out."""
    folders = sum(map(_is_dir, inputs))
    real_folders: dict[str, str] = {}
    found: dict[tuple[str, str], Found] = {}
    for text in inputs:
        for file in _expand(text, suffixes, notes, results, keep_name=folders > 1):
            parent, name = os.path.split(os.path.abspath(file.source)) if file.source else (file.name, "")  # noqa: PTH100
            if parent not in real_folders:
                real_folders[parent] = os.path.realpath(parent)
            found.setdefault((real_folders[parent], name), file)
    return list(found.values())


def is_folder(output: str) -> bool:
    """Whether -o means a folder, there or not, to write into."""
    return output.endswith(("/", os.sep)) or _is_dir(output)


def is_taken(target: Path) -> bool:
    """Whether a result would replace something; pipes and devices just take it."""
    return os.path.isfile(target) or _is_dir(target)  # noqa: PTH113 - Path's own raises for long names


def _is_dir(path: str | Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path's own raises for long names


def _check_folder(output: str, naming: Naming) -> None:
    """Raises UsageError where the results of several inputs cannot, or are hardly meant to, be written."""
    if output == STREAM:
        raise UsageError("standard output takes the result of one input")
    if is_folder(output):
        return
    if os.path.exists(output):  # noqa: PTH110 - raises for long names
        raise UsageError(f"{output} is a file, and the results of several inputs need a folder")
    if Path(output).suffix.lower() in naming.written:
        raise UsageError(
            f"the results of several inputs need a folder: if {output} is meant to be one, write {output}/"
        )


def _expand(
    text: str, suffixes: frozenset[str], notes: list[str], results: Iterable[str], keep_name: bool
) -> list[Found]:
    if text == STREAM:
        return [Found("stdin")]
    if not text:
        return [Found(text, problem=InputError("an empty name"))]
    if _is_dir(text):
        return _search(Path(text), suffixes, notes, results, keep_name)
    if glob.has_magic(text) and not os.path.lexists(text):
        matches = glob.glob(text, recursive=True)  # noqa: PTH207 - absolute patterns too
        files = sorted(Path(match) for match in matches if _is_file(match))
        return [Found(str(file), file, Path(file.name)) for file in files] or [
            Found(text, problem=InputError("no file matches"))
        ]
    return [Found(text, Path(text))]


def _search(
    folder: Path, suffixes: frozenset[str], notes: list[str], results: Iterable[str], keep_name: bool
) -> list[Found]:
    """What a folder holds, in all its subfolders; each is entered once, so that links cannot lead in circles."""
    root = Path(os.path.basename(os.path.abspath(folder))) if keep_name else Path()  # noqa: PTH100, PTH119 - of "." too
    real, links, entered = [str(folder)], list[str](), set[tuple[int, int]]()
    files: list[Path] = []
    problems: list[Found] = []
    others: Counter[str] = Counter()
    while real or links:  # a folder's own place comes before links to it
        here = real.pop() if real else links.pop(0)
        try:
            status = os.stat(here)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            problems.append(Found(here, problem=InputError(f"cannot be read: {reason(error)}")))
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(here, entry.name)
            if _is_dir(path):
                (links if entry.is_symlink() else real).append(str(path))
            elif path.suffix.lower() in suffixes and _is_file(path):
                files.append(path)
            elif path.suffix.lower() not in results:
                others[path.suffix.lower() if path.suffix.lower() not in suffixes else "no regular file"] += 1
    rest = f"{others.total()} other file{'s' * (others.total() > 1)}" if others else ""
    kinds = ", ".join(suffix or "no suffix" for suffix, _ in others.most_common(5))
    if files and others:
        notes.append(f"{folder}: {rest} left out ({kinds})")
    found = [Found(str(file), file, root / file.relative_to(folder)) for file in sorted(files)] + problems
    here_are = f"; here are {rest} ({kinds})" if others else ""
    nothing = InputError(f"no file in this folder ends in {', '.join(sorted(suffixes))}{here_are}")
    return found or [Found(str(folder), problem=nothing)]


def _is_file(path: str | Path) -> bool:
    """A regular file, or a link to nothing, which is to be named; not what might block the reader, as pipes do."""
    return os.path.isfile(path) or not os.path.exists(path)  # noqa: PTH110, PTH113 - Path's own raise for long names


def _targets(found: Sequence[Found], folder: Path | None, new_suffix: str, notes: list[str]) -> list[Path | None]:
    """Where results go, in `folder` or beside their inputs, no two in one place as far as names can help it."""
    sources = [file.source or Path("stdin") for file in found]
    names = sources if folder is None else [file.inside or Path(s.name) for file, s in zip(found, sources, strict=True)]
    shared = _shared([name.with_suffix(new_suffix) for name in names])
    places = [os.path.dirname(os.path.abspath(source)) for source in sources]  # noqa: PTH100, PTH120
    if folder and any(len({places[at] for at in group}) > 1 for group in shared):
        common = os.path.commonpath([place for place, file in zip(places, found, strict=True) if file.source])
        for at in (at for group in shared for at in group):
            names[at] = Path(os.path.relpath(places[at], common), sources[at].name)
        shared = _shared([name.with_suffix(new_suffix) for name in names])
    keep = {at for group in shared for at in group}
    if keep:
        examples = " and ".join(str(sources[at]) for at in shared[0][:2])
        notes.append(f"{len(keep)} results keep their inputs' suffixes, since {examples} differ in nothing else")
    results = [
        name.with_name(name.name + new_suffix) if at in keep else name.with_suffix(new_suffix)
        for at, name in enumerate(names)
    ]
    if folder:
        return [folder / result for result in results]
    return [result if file.source else None for result, file in zip(results, found, strict=True)]


def _shared(names: Sequence[Path | None]) -> list[list[int]]:
    """The numbers of those that are equal, None left out."""
    groups: dict[Path, list[int]] = {}
    for number, name in enumerate(names):
        if name is not None:
            groups.setdefault(name, []).append(number)
    return [group for group in groups.values() if len(group) > 1]


def _refuse_collisions(tasks: list[Task]) -> list[Task]:
    for group in _shared([task.target for task in tasks]):
        names = " and ".join(tasks[at].name for at in group[:3])
        for at in group:
            problem = OutputError(f"{tasks[at].target} would be the result of {names}")
            tasks[at] = replace(tasks[at], problem=problem)
    return tasks
