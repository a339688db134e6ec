"""`titokc doctor`: what is installed, what models would run on, where weights are, and whether a picture survives."""

import json
import os
import platform
import re
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

import click

from titokc._version import __version__
from titokc.cli.report import put
from titokc.container import KNOWN_MODELS
from titokc.errors import ModelError, TitokcError

ROUND_TRIP_TOKENS = 32
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[([a-z]+)\])?[^;]*(?:;.*extra == .([a-z]+).)?")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(as_json: bool) -> None:
    """Versions, devices, models, metric weights, and a round trip of the embedded model.

    The exit code is that of the round trip: 0, or 4 if the embedded model cannot be used.
    """
    report: dict[str, dict[str, Any]] = {
        "versions": _versions(),
        "extras": _extras(),
        "engines": _engines(),
        "image_formats": _image_formats(),
        "devices": _devices(),
        "models": _models(),
        "metric_weights": _metric_weights(),
        "round_trip": _round_trip(),
    }
    if as_json:
        put(json.dumps(report))
    else:
        for section, rows in report.items():
            put(section.replace("_", " "))
            for name, value in rows.items():
                put(f"  {name.replace('_', ' '):<19} {_text(value)}")
    if "error" in report["round_trip"]:
        click.get_current_context().exit(ModelError.exit_code)


def _requirements() -> dict[str, list[str]]:
    """Packages by the extra that asks for them, "" for those that are always needed."""
    found: dict[str, list[str]] = {}
    for text in requires("titokc") or ():
        if (match := _REQUIREMENT.match(text)) and match[3] != "dev":
            packages = found[match[2]] if match[1] == "titokc" else [match[1].lower()]
            found.setdefault(match[3] or "", []).extend(packages)
    return found


def _versions() -> dict[str, Any]:
    found: dict[str, Any] = {"titokc": __version__, "python": platform.python_version(), "system": platform.platform()}
    packages = [package for packages in _requirements().values() for package in packages]
    return found | {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _extras() -> dict[str, Any]:
    """Whether each extra's packages are here, else what installs them."""
    found: dict[str, Any] = {}
    for extra, packages in _requirements().items():
        lacking = [package for package in packages if _version(package) is None]
        if extra:
            found[extra] = f"pip install 'titokc[{extra}]' (for {', '.join(lacking)})" if lacking else True
    return found


def _engines() -> dict[str, Any]:
    return {
        "light": "nano on the CPU, with NumPy alone",
        "torch": "every model and device, training" if _torch() else "not here: pip install 'titokc[torch]'",
    }


def _torch() -> Any:
    """The module, None where it is not installed or cannot be loaded."""
    try:
        import torch
    except (ImportError, OSError):
        return None
    return torch


def _image_formats() -> dict[str, Any]:
    from PIL import features

    names = {"jpg": "JPEG", "webp": "WebP", "avif": "AVIF", "libtiff": "compressed TIFF", "littlecms2": "ICC colours"}
    return {label: bool(features.check(name)) for name, label in names.items()}


def _devices() -> dict[str, Any]:
    cpu = f"{os.cpu_count()} cores"
    if (torch := _torch()) is None:
        return {"cpu": cpu, "default": "cpu"}

    from titokc.engines.torch import find_device, find_dtype

    default = find_device("auto")
    cuda = {
        f"cuda:{number}": f"{torch.cuda.get_device_name(number)}, "
        f"{torch.cuda.get_device_properties(number).total_memory / 2**30:.0f} GiB"
        for number in range(torch.cuda.device_count())
    }
    return {
        "cpu": f"{cpu}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        **cuda,
        "mps": torch.backends.mps.is_available(),
        "default": str(default),
        "decoder_precision": str(find_dtype(None, default)).removeprefix("torch."),
    }


def _models() -> dict[str, Any]:
    """Where each known and installed model is, None if it is not on this machine."""
    from titokc.weights import places

    known = {row.name: _found(places.locate, row.name) for row in KNOWN_MODELS.values()}
    found = {name: files and str(files.weights) for name, files in known.items()}
    found |= {files.name: str(files.weights) for files in places.installed()}
    return {**found, "installed_in": str(places.models_dir()), "hub_cache": str(places.hub_cache())}


def _metric_weights() -> dict[str, Any]:
    """Where the networks of LPIPS, FID and KID are, None if they are not on this machine."""
    from titokc.judge.files import INCEPTION, INCEPTION_STAND_IN, LPIPS_TRUNKS, find

    files = {f"LPIPS ({trunk})": names for trunk, names in LPIPS_TRUNKS.items()}
    files |= {"FID and KID": (INCEPTION,), "FID-768 (stand-in)": (INCEPTION_STAND_IN,)}
    found = {used_for: _found(find, names) for used_for, names in files.items()}
    return {used_for: file and str(file.path) for used_for, file in found.items()}


def _found(find: Callable[[Any], Any], what: Any) -> Any:
    """None where there is none."""
    try:
        return find(what)
    except TitokcError:
        return None


def _round_trip() -> dict[str, Any]:
    """A small picture through the embedded model: bytes, milliseconds, mean absolute error of 255."""
    from PIL import Image, ImageChops, ImageStat

    from titokc.codec import Codec

    picture = Image.merge(
        "RGB", (Image.linear_gradient("L"), Image.radial_gradient("L"), Image.new("L", (256, 256), 80))
    )
    codec = Codec()
    try:
        start = time.perf_counter()
        info = codec.info
        loaded = time.perf_counter()
        data = codec.encode(picture, tokens=ROUND_TRIP_TOKENS)
        encoded = time.perf_counter()
        decoded = codec.decode(data)
        done = time.perf_counter()
    except TitokcError as error:
        return {"error": str(error)}
    mean = ImageStat.Stat(ImageChops.difference(picture, decoded)).mean
    return {
        "model": info.name,
        "code": info.code.hex(),
        "looks": ", ".join(info.looks),
        "file_bytes": len(data),
        "mean_error": round(sum(mean) / 3, 2),
        "load_ms": round((loaded - start) * 1e3),
        "encode_ms": round((encoded - loaded) * 1e3),
        "decode_ms": round((done - encoded) * 1e3),
    }


def _text(value: Any) -> str:
    if value is None:
        return "not here"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
