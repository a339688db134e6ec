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
from titokc.files import expanded, sha256
from titokc.models import EMBEDDED, EMBEDDED_FILE, Release, releases

WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pth")
CONFIG_NAME = "config.json"
_EMBEDDED_NAMES = ("nano", EMBEDDED)
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

    The name of a known or installed model is never taken for a path: write ./titok-l-32, or a Path, for a folder of
    that name. Raises ModelNotFoundError.
    """
    name = os.fspath(name_or_path)
    is_path = isinstance(name_or_path, os.PathLike)
    if not is_path and name in _EMBEDDED_NAMES:
        return _embedded()
    if not is_path and _NAME.fullmatch(name) and (models_dir() / name).is_dir():
        return _at(models_dir() / name)._replace(name=name)
    path, known = expanded(name), releases()
    if is_path or (name and name not in known and os.path.exists(path)):  # noqa: PTH110 - Path's raises for long names
        return _at(path.absolute())
    repo_id = known[name].repo_id if name in known else name
    if _REPO_ID.fullmatch(repo_id) and (snapshot := _snapshot(known.get(name, Release(repo_id, 0, None)))):
        return _at(snapshot)._replace(name=name)
    raise ModelNotFoundError(_not_found(name))


def fetch(name: str) -> ModelFiles:
    """Downloads a known model or a hub repository ("owner/name") into the hub's cache. Raises ModelNotFoundError.

    HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and the hub's other switches apply. Of a release whose revision and hash are
    known, that revision is asked for, and WeightsError raised for a file of another hash.
    """
    if name in _EMBEDDED_NAMES:
        return _embedded()
    release = releases().get(name, Release(name, 0, None))
    repo_id = release.repo_id
    if not _REPO_ID.fullmatch(repo_id):
        known = ", ".join(releases())
        raise UsageError(f"{name!r} is neither a known model ({known}) nor a hub repository (owner/name)")
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
        config = Path(hf_hub_download(repo_id, CONFIG_NAME, revision=release.revision or None))
        for candidate in WEIGHTS_NAMES:
            try:
                weights = Path(hf_hub_download(repo_id, candidate, revision=release.revision or None))
            except errors.LocalEntryNotFoundError:
                raise
            except errors.EntryNotFoundError:
                continue
            if release.sha256 and (found := sha256(weights)) != release.sha256:
                raise WeightsError(f"{weights}: its SHA-256 is {found}, expected {release.sha256} for {name}")
            return ModelFiles(weights, config, name)
    except (errors.EntryNotFoundError, *http_errors) as error:
        detail = " ".join(str(error).split())
        raise ModelNotFoundError(f"{name} could not be downloaded from {repo_id}: {detail}") from error
    raise ModelNotFoundError(f"{repo_id} on the hub has neither {' nor '.join(WEIGHTS_NAMES)}")


def is_fetched(files: ModelFiles) -> bool:
    """Whether these files of a release are those that came from its repository into the hub's cache."""
    release = releases().get(files.name)
    return release is not None and files.weights.parent == _snapshot(release)


def installed() -> Iterator[ModelFiles]:
    """The models in `models_dir()`, by name; folders that hold no model are passed over."""
    folder = models_dir()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if _NAME.fullmatch(path.name) and (weights := _weights_in(path)):
            yield ModelFiles(weights, _config_beside(weights), path.name)


def find(code: bytes) -> list[Path]:
    """The folders of the installed models whose code's fingerprint starts with these bytes, one for each code."""
    found = {digest: files.weights.parent for files in installed() if (digest := noted(files.weights).get("code", ""))}
    return [folder for digest, folder in found.items() if digest.startswith(code.hex())]


def noted(weights: Path) -> dict[str, str]:
    """What `titokc.weights.save` noted in a .safetensors file, "code" and "weights", the two fingerprints in hex; empty
    if there is nothing. Not checked here."""
    try:
        return {name: str(value) for name, value in header(weights)[0].get("__metadata__", {}).items()}
    except (OSError, ValueError, AttributeError, struct.error, RecursionError):
        return {}


def header(weights: Path) -> tuple[dict[str, Any], int]:
    """The JSON at the start of a .safetensors file, and where its tensors begin; as many errors as files can have."""
    with weights.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return json.loads(stream.read(length)) if length <= _LONGEST_HEADER else {}, 8 + length


def install_dir(name: str) -> Path:
    """Where a model is installed under `name`. Raises UsageError for a name that cannot be."""
    if name in _EMBEDDED_NAMES:
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
    if not EMBEDDED_FILE.is_file():
        raise ModelNotFoundError(f"the embedded model is missing ({EMBEDDED_FILE}): install titokc again")
    return ModelFiles(EMBEDDED_FILE, EMBEDDED_FILE.with_suffix(".json"), EMBEDDED)


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


def _snapshot(release: Release) -> Path | None:
    """The cached revision of a repository, the main one where none is pinned, if it has weights."""
    folder = hub_cache() / f"models--{release.repo_id.replace('/', '--')}"
    try:
        revision = release.revision or (folder / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    snapshot = folder / "snapshots" / revision
    return snapshot if _weights_in(snapshot) else None


def _not_found(name: str) -> str:
    places = f"looked in {models_dir()} and {hub_cache()}"
    if release := releases().get(name):
        aside = f"; the folder ./{name} is ./{name}, not {name}" if Path(name).exists() else ""
        return (
            f"the model {name} ({release.parameters * 4 / 1e6:,.0f} MB) is not on this machine: {places}{aside}. "
            f"Get it with `titokc models fetch {name}`, or, if you have it, "
            f"`titokc models install PATH --name {name}`, or do without: the embedded model nano needs no download"
        )
    known = ", ".join(("nano", *releases()))
    hint = f"; `titokc models fetch {name}` may find it on the hub" if _REPO_ID.fullmatch(name) else ""
    return f"no model {name!r}: not a path, not a known name ({known}), and not installed ({places}){hint}"
