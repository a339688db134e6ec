"""Peak memory of a codec, as a fresh process has it that encodes and decodes one picture."""

from __future__ import annotations

import sys
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image

from titokc.bench.contenders.interface import Point
from titokc.processes import begin

TIME_LIMIT_S = 600


def peak_memory_mb(spec: str, device: str, picture: Path, point: Point) -> float | None:
    """The largest resident size, in 10^6 bytes, of a process that encodes and decodes `picture`; None if it fails."""
    spawn = get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_measure, args=(sender, spec, device, picture, point))
    process.start()
    sender.close()
    try:
        return receiver.recv() / 1e6 if receiver.poll(TIME_LIMIT_S) else None
    except EOFError:
        return None
    finally:
        process.kill()
        process.join()


def _measure(sender: Connection, spec: str, device: str, picture: Path, point: Point) -> None:
    begin()
    from titokc.bench.contenders import open_contender

    with suppress(Exception), Image.open(picture) as image:
        codec = open_contender(spec, device)
        codec.decode(codec.encode(image.convert("RGB"), point)).load()
        sender.send(_peak_bytes())


def _peak_bytes() -> int:
    """Of this process, or of the largest program that it ran.

    Linux's VmHWM starts at zero with the program; ru_maxrss, for the others, can be the parent's.
    """
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    status = Path("/proc/self/status")
    if status.exists():
        own = int(dict(line.split(":", 1) for line in status.read_text().splitlines())["VmHWM"].split()[0]) * 1024
    else:
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit)
