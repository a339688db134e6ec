"""Runs a titokc command over and over, each time with another of its writes failing, and says what became of the files.

    python faulty.py PRISTINE WORK EVERY ACTIONS ARGUMENT...

Each run starts from a copy of the folder PRISTINE at WORK, in a process forked from this one. What is counted is every
opening for writing, fsync, rename, link and new folder below WORK. At each EVERY-th of these in turn the action comes:
ENOSPC and EIO raise that error, SIGKILL ends the process; FSIZE lets the system itself refuse to write more than some
bytes (20) to any file. A run without a fault follows in the same folder. Writes a line of JSON for each pair.
"""

import errno
import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
from importlib import import_module
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# What a verb imports late, once for all runs: two thirds of a training's time here.
LATE = {"train": ("titokc.train.start", "torch._dynamo", "torch.utils.tensorboard")}
MILLISECONDS = re.compile(rb'"\w+_ms": [\d.e-]+')
_fsync = os.fsync
state = {"at": 0, "action": "", "count": 0, "folder": "", "armed": False}


def step(*path):
    state["count"] += 1
    if state["count"] == state["at"]:
        if state["action"] == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(getattr(errno, state["action"]), os.strerror(getattr(errno, state["action"])), *path)


def watch(event, arguments):
    if not state["armed"]:
        return
    if event == "open":
        path, _, flags = arguments
        if not flags or not flags & WRITING:
            return
    elif event in ("os.rename", "os.link", "os.mkdir"):
        path = arguments[0]
    else:
        return
    if isinstance(path, (str, os.PathLike)) and os.path.realpath(path).startswith(state["folder"]):
        step(path)


def fsync(handle):
    if state["armed"]:
        step()
    _fsync(handle)


def run(work, arguments, action="", at=0):
    """One run in a forked process: its exit code or minus its signal, what it said, how many writes it came to."""
    reading, writing = os.pipe()
    listening, said = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        os.close(listening)
        os.chdir(work)
        null = os.open(os.devnull, os.O_RDWR)
        for handle, target in ((0, null), (1, null), (2, said)):
            os.dup2(target, handle)
        os.close(said)
        code = 70
        try:
            from titokc.cli import main

            # What the tests' own capture left there belongs to another process.
            sys.stdout, sys.stderr = io.TextIOWrapper(io.FileIO(1, "w")), io.TextIOWrapper(io.FileIO(2, "w"))
            if action == "FSIZE":
                resource.setrlimit(resource.RLIMIT_FSIZE, (at, resource.RLIM_INFINITY))
            state.update(at=at if action != "FSIZE" else 0, action=action, folder=str(work), armed=True)
            try:
                main(arguments, prog_name="titokc")
            except SystemExit as end:
                code = end.code or 0
            state["armed"] = False
            if action == "FSIZE":
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            sys.stderr.flush()
            os.write(writing, str(state["count"]).encode())
        finally:
            os._exit(code if isinstance(code, int) else 1)
    os.close(writing)
    os.close(said)
    text = b"".join(iter(lambda: os.read(listening, 4096), b"")).decode(errors="replace")
    os.close(listening)
    count = os.read(reading, 20).decode()
    os.close(reading)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), text, int(count or 0)


def files(folder):
    """Names and digests; of JSON without the milliseconds of a benchmark's rows, which no two runs share."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(MILLISECONDS.sub(b"", path.read_bytes())).hexdigest()[:16]
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def main():
    pristine, work, every, actions, *arguments = sys.argv[1:]
    pristine, work = Path(pristine), Path(work).resolve()
    for module in (
        "titokc.cli.options",
        f"titokc.cli.{arguments[0]}",
        "titokc.codec",
        "torch",
        *LATE.get(arguments[0], ()),
    ):
        import_module(module)
    os.fsync = fsync
    sys.addaudithook(watch)

    def fresh():
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(pristine, work)

    fresh()
    code, said, writes = run(work, arguments)
    sys.stdout.write(
        json.dumps({"action": "", "code": code, "said": said, "writes": writes, "files": files(work)}) + "\n"
    )
    for action in actions.split(","):
        places = (20,) if action == "FSIZE" else range(1, writes + 1, int(every))
        for at in places:
            fresh()
            code, said, _ = run(work, arguments, action, at)
            row = {"action": action, "at": at, "code": code, "said": said, "files": files(work)}
            row["again"] = run(work, arguments)[:2]
            sys.stdout.write(json.dumps(row | {"files_again": files(work)}) + "\n")


if __name__ == "__main__":
    main()
