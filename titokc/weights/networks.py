"""Weights of networks that judge pictures (LPIPS trunks, Inception): where they are looked for, and their download.

`titokc.bench` and `titokc.train` load what is found here; models of our own are in `titokc.weights.places`.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from titokc.errors import MetricWeightsMissingError
from titokc.files import expanded


class NetworkFile(NamedTuple):
    """A published file. `url` ends in its name, and that in -HASH.pth: the first digits of its SHA-256."""

    url: str
    megabytes: float
    used_for: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def hash_prefix(self) -> str:
        return self.name.rpartition("-")[2].partition(".")[0]


_PYTORCH = "https://download.pytorch.org/models"
ALEXNET = NetworkFile(f"{_PYTORCH}/alexnet-owt-7be5be79.pth", 233, "LPIPS")
VGG16 = NetworkFile(f"{_PYTORCH}/vgg16-397923af.pth", 528, "LPIPS on VGG16")
INCEPTION = NetworkFile(
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    91,
    "FID and KID",
)


def find_network(file: NetworkFile, folder: Path | None = None, *, download: bool = False) -> Path:
    """The file's path, its hash checked.

    Looked for in `folder` if given, in $TITOKC_WEIGHTS_DIR if set, and in torch's hub cache, where `download` puts it.
    Raises MetricWeightsMissingError, which says all that and what can be done.
    """
    places = [folder] if folder else []
    if named := os.environ.get("TITOKC_WEIGHTS_DIR"):
        places.append(expanded(named))
    cache = _hub_cache()
    places.append(cache)
    for place in places:
        path = place / file.name
        if path.is_file():
            return _checked(path, file)
    if download:
        return _download(file, cache / file.name)
    raise MetricWeightsMissingError(
        f"{file.name} ({file.megabytes} MB) for {file.used_for} is not in {', '.join(map(str, places))}; "
        f"get it from {file.url} into one of these folders, or allow the download (--download-weights)"
    )


def _hub_cache() -> Path:
    """torch.hub.get_dir()/checkpoints, without importing torch."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(os.environ.get("TORCH_HOME") or f"{cache_home}/torch") / "hub" / "checkpoints"


def _checked(path: Path, file: NetworkFile) -> Path:
    sha256 = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            sha256.update(block)
    digest = sha256.hexdigest()
    if not digest.startswith(file.hash_prefix):
        raise MetricWeightsMissingError(
            f"{path} is damaged or another file: its SHA-256 starts with {digest[:8]}, expected {file.hash_prefix}"
        )
    return path


def _download(file: NetworkFile, target: Path) -> Path:
    from torch.hub import download_url_to_file

    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        download_url_to_file(file.url, str(target), hash_prefix=file.hash_prefix)
    except (OSError, RuntimeError) as error:  # no connection; the hash is wrong
        detail = " ".join(str(error).split())
        raise MetricWeightsMissingError(f"{file.url} could not be downloaded: {detail}") from error
    return target
