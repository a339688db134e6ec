"""Which files a command line means, and where each result goes; `titokc.cli.batch` then does what is planned."""

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from titokc.errors import InputError, OutputError, TitokcError, UsageError
from titokc.files import is_file, search

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
    several = sum(map(_is_dir, inputs)) > 1
    real_folders: dict[str, str] = {}
    found: dict[tuple[str, str], Found] = {}
    for text in inputs:
        meant = _in_folder(Path(text), suffixes, notes, results, several) if _is_dir(text) else _named(text)
        for file in meant:
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


def _named(text: str) -> list[Found]:
    """What an argument means that is no folder."""
    if text == STREAM:
        return [Found("stdin")]
    if not text:
        return [Found(text, problem=InputError("an empty name"))]
    if glob.has_magic(text) and not os.path.lexists(text):
        matches = glob.glob(text, recursive=True)  # noqa: PTH207 - absolute patterns too
        files = sorted(Path(match) for match in matches if is_file(match))
        return [Found(str(file), file, Path(file.name)) for file in files] or [
            Found(text, problem=InputError("no file matches"))
        ]
    return [Found(text, Path(text))]


def _in_folder(
    folder: Path, suffixes: frozenset[str], notes: list[str], results: Iterable[str], keep_name: bool
) -> list[Found]:
    root = Path(os.path.basename(os.path.abspath(folder))) if keep_name else Path()  # noqa: PTH100, PTH119 - of "." too
    tree = search(folder, suffixes)
    for suffix in results:
        del tree.others[suffix]
    if tree.files and tree.left_out:
        notes.append(f"{folder}: {tree.left_out} left out")
    found = [Found(str(file), file, root / file.relative_to(folder)) for file in tree.files]
    found += [Found(str(at), problem=InputError(f"cannot be read: {why}")) for at, why in tree.unreadable.items()]
    here_are = f"; here are {tree.left_out}" if tree.left_out else ""
    nothing = InputError(f"no file in this folder ends in {', '.join(sorted(suffixes))}{here_are}")
    return found or [Found(str(folder), problem=nothing)]


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
