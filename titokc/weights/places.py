"""Where a model's files are: given by path, embedded, installed, or in the hub's cache; `fetch` alone downloads.

No torch here, so that listing models is fast; `titokc.weights.load` reads what is found.
"""

import json
import os
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from titokc.errors import ModelNotFoundError, UsageError, WeightsError
from titokc.files import expanded
from titokc.weights.known import NANO, RELEASES

WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pth")
CONFIG_NAME = "config.json"
_EMBEDDED = Path(__file__).parent / "nano.safetensors"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REPO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_LONGEST_HEADER = 100_000_000


class ModelFiles(NamedTuple):
    """weights: a .safetensors, .bin or .pth file. config: its JSON file, if there is one. name: or else the path."""

    weights: Path
    config: Path | None
    name: str

    def read_config(self) -> dict[str, Any] | None:
        """The configuration file's content, None without one. Raises WeightsError if it is not a JSON object."""
        if self.config is None:
            return None
        try:
            content = json.loads(self.config.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise WeightsError(f"{self.config}: not a readable JSON file ({error})") from error
        if not isinstance(content, dict):
            raise WeightsError(f"{self.config}: expected a JSON object, found {type(content).__name__}")
        return content


def locate(name_or_path: str | os.PathLike[str]) -> ModelFiles:
    """The files of a known or installed name, a hub repository ("owner/name") in the cache, or a path.

    A known name is never taken for a path: write ./titok-l-32, or a Path, for a folder of that name. Raises
    ModelNotFoundError.
    """
    name = os.fspath(name_or_path)
    is_path = isinstance(name_or_path, os.PathLike)
    if not is_path and name in {"nano", NANO}:
        return _embedded()
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - Path's own raises for ~nobody
    if is_path or (name and name not in RELEASES and os.path.exists(path)):  # noqa: PTH110 - raises for long names
        return _at(path.absolute())
    if _NAME.fullmatch(name) and (models_dir() / name).is_dir():
        return _at(models_dir() / name)._replace(name=name)
    repo_id = RELEASES[name].repo_id if name in RELEASES else name
    if _REPO_ID.fullmatch(repo_id) and (snapshot := _snapshot(repo_id)):
        return _at(snapshot)._replace(name=name)
    raise ModelNotFoundError(_not_found(name))


def fetch(name: str) -> ModelFiles:
    """Downloads a known model or a hub repository ("owner/name") into the hub's cache. Raises ModelNotFoundError.

    HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and the hub's other switches apply.
    """
    if name in {"nano", NANO}:
        return _embedded()
    repo_id = RELEASES[name].repo_id if name in RELEASES else name
    if not _REPO_ID.fullmatch(repo_id):
        raise UsageError(f"{name!r} is neither a known model ({', '.join(RELEASES)}) nor a hub repository (owner/name)")
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        raise ModelNotFoundError(
            f"downloading {name} needs the huggingface_hub package: pip install 'titokc[hub]' "
            f"(or get config.json and the weights of {repo_id} by other means, and give the folder with --model)"
        ) from error
    # Not every one of the hub's errors is an OSError; which ones are changed between its versions.
    http_errors = (OSError, ValueError, errors.HfHubHTTPError, getattr(errors, "HTTPError", OSError))
    try:
        config = Path(hf_hub_download(repo_id, CONFIG_NAME))
        for candidate in WEIGHTS_NAMES:
            try:
                return ModelFiles(Path(hf_hub_download(repo_id, candidate)), config, name)
            except errors.LocalEntryNotFoundError:
                raise
            except errors.EntryNotFoundError:
                continue
    except (errors.EntryNotFoundError, *http_errors) as error:
        detail = " ".join(str(error).split())
        raise ModelNotFoundError(f"{name} could not be downloaded from {repo_id}: {detail}") from error
    raise ModelNotFoundError(f"{repo_id} on the hub has neither {' nor '.join(WEIGHTS_NAMES)}")


def installed() -> Iterator[ModelFiles]:
    """The models in `models_dir()`, by name; folders that hold no model are passed over."""
    folder = models_dir()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if _NAME.fullmatch(path.name) and (weights := _weights_in(path)):
            yield ModelFiles(weights, _config_beside(weights), path.name)


def find(fingerprint: bytes) -> Path | None:
    """The installed model's folder whose fingerprint starts with these bytes, None if there is none."""
    wanted = fingerprint.hex()
    for files in installed():
        if stored_fingerprint(files.weights).startswith(wanted):
            return files.weights.parent
    return None


def embedded_fingerprint() -> str:
    """The embedded model's, in hex; "" if it is missing."""
    return stored_fingerprint(_EMBEDDED)


def stored_fingerprint(weights: Path) -> str:
    """The fingerprint, in hex, that `titokc.weights.save` noted in the file; "" if there is none. Not checked here."""
    try:
        with weights.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length)) if length <= _LONGEST_HEADER else {}
        return str(header.get("__metadata__", {}).get("fingerprint", ""))
    except (OSError, ValueError, AttributeError, struct.error, RecursionError):
        return ""


def install_dir(name: str) -> Path:
    """Where a model is installed under `name`. Raises UsageError for a name that cannot be."""
    if name in {"nano", NANO}:
        raise UsageError(f"{name} is the embedded model's name: choose another")
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be a model's name: letters, digits, dots, dashes and underscores")
    return models_dir() / name


def models_dir() -> Path:
    """$TITOKC_HOME/models, else titokc/models in the platform's folder for a user's data."""
    if home := os.environ.get("TITOKC_HOME"):
        return expanded(home) / "models"
    if sys.platform == "win32":
        data = Path(os.environ.get("LOCALAPPDATA") or expanded("~/AppData/Local"))
    elif sys.platform == "darwin":
        data = expanded("~/Library/Application Support")
    else:
        data = Path(os.environ.get("XDG_DATA_HOME") or expanded("~/.local/share"))
    return data / "titokc" / "models"


def hub_cache() -> Path:
    """The Hugging Face hub's cache, as its own library finds it, which need not be installed to read from it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(variable):
            return expanded(value)
    cache = f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return expanded(os.environ.get("HF_HOME") or cache) / "hub"


def _embedded() -> ModelFiles:
    if not _EMBEDDED.is_file():
        raise ModelNotFoundError(f"the embedded model is missing ({_EMBEDDED}): install titokc again")
    return ModelFiles(_EMBEDDED, _EMBEDDED.with_suffix(".json"), NANO)


def _at(path: Path) -> ModelFiles:
    if path.is_file():
        if path.suffix not in WEIGHTS_SUFFIXES:
            raise WeightsError(f"{path}: not a weights file (expected {', '.join(WEIGHTS_SUFFIXES)})")
        return ModelFiles(path, _config_beside(path), str(path))
    if weights := _weights_in(path):
        return ModelFiles(weights, _config_beside(weights), str(path))
    if not path.exists():
        raise ModelNotFoundError(f"{path} does not exist")
    raise ModelNotFoundError(f"no model in {path}: expected {CONFIG_NAME} and {' or '.join(WEIGHTS_NAMES)}")


def _weights_in(folder: Path) -> Path | None:
    """The file of the usual name, or else the only one of the right kind."""
    for name in WEIGHTS_NAMES:
        if (folder / name).is_file():
            return folder / name
    others = [path for path in folder.glob("*") if path.suffix in WEIGHTS_SUFFIXES and path.is_file()]
    return others[0] if len(others) == 1 else None


def _config_beside(weights: Path) -> Path | None:
    """name.json beside name.safetensors, else config.json."""
    candidates = (weights.with_suffix(".json"), weights.with_name(CONFIG_NAME))
    return next((path for path in candidates if path.is_file()), None)


def _snapshot(repo_id: str) -> Path | None:
    """The cached main revision of a repository, if it has weights."""
    folder = hub_cache() / f"models--{repo_id.replace('/', '--')}"
    try:
        revision = (folder / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    snapshot = folder / "snapshots" / revision
    return snapshot if _weights_in(snapshot) else None


def _not_found(name: str) -> str:
    places = f"looked in {models_dir()} and {hub_cache()}"
    if name in RELEASES:
        release = RELEASES[name]
        aside = f"; the folder ./{name} is ./{name}, not {name}" if Path(name).exists() else ""
        return (
            f"the model {name} ({release.parameters * 4 / 1e6:,.0f} MB) is not on this machine: {places}{aside}. "
            f"Get it with `titokc models fetch {name}`, or, if you have it, "
            f"`titokc models install PATH --name {name}`, or do without: the embedded model nano needs no download"
        )
    known = ", ".join(("nano", *RELEASES))
    hint = f"; `titokc models fetch {name}` may find it on the hub" if _REPO_ID.fullmatch(name) else ""
    return f"no model {name!r}: not a path, not a known name ({known}), and not installed ({places}){hint}"
