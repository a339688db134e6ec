"""Peak memory of a codec: `python -m titokc.bench.memory CODEC DEVICE PICTURE POINT` in a fresh process prints it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from titokc.bench.contenders.interface import Point

TIME_LIMIT_S = 600


def peak_memory_mb(spec: str, device: str, picture: Path, point: Point) -> float | None:
    """The largest resident size, in 10^6 bytes, of a process that encodes and decodes `picture`; None if it fails."""
    command = [sys.executable, "-m", "titokc.bench.memory", spec, device, str(picture), json.dumps(point)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command_line: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, env=environment, **command_line) as process:
        try:
            failed = process.wait(TIME_LIMIT_S)
        except subprocess.TimeoutExpired:
            failed = True
        if failed:
            process.kill()
            return None
        assert process.stdout is not None
        return float(process.stdout.read()) / 1e6


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


def _main(spec: str, device: str, picture: str, point: str) -> None:
    from PIL import Image

    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()  # its parent is gone
    from titokc.bench.contenders import open_contender

    codec = open_contender(spec, device)
    with Image.open(picture) as image:
        codec.decode(codec.encode(image.convert("RGB"), json.loads(point))).load()
    sys.stdout.write(f"{_peak_bytes()}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
