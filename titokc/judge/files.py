"""Weights of networks that judge pictures (LPIPS's trunks, Inception): which files, where they are looked for, their
hashes, and their download. `titokc.judge.networks` and `titokc.judge.inception` load them, for losses and scores alike.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from titokc.errors import MetricWeightsMissingError
from titokc.files import expanded, sha256


class NetworkFile(NamedTuple):
    """A file of weights. `sha256`: all of its hash, or the first digits, where its publisher gives no more.

    `url` is None for what is published nowhere on its own.
    """

    name: str
    sha256: str
    megabytes: float
    url: str | None = None


class Found(NamedTuple):
    path: Path
    sha256: str


def _published(name: str, megabytes: float, place: str = "https://download.pytorch.org/models") -> NetworkFile:
    """A file whose name ends in -HASH.pth."""
    return NetworkFile(name, name.rpartition("-")[2].partition(".")[0], megabytes, f"{place}/{name}")


ALEXNET = _published("alexnet-owt-7be5be79.pth", 233)
VGG16 = _published("vgg16-397923af.pth", 528)
SQUEEZENET = _published("squeezenet1_1-b8a52dc0.pth", 4.7)
# The same weights rounded to float16, in torchvision's names; LPIPS differs by 0.03 % in the mean.
SQUEEZENET_HALF = NetworkFile(
    "lpips-squeeze.safetensors", "0688cb529c9326b14e634170de75b210bffffbf3bd344fe6c5a5f73621f072a7", 1.5
)
LPIPS_TRUNKS = {"squeeze": (SQUEEZENET, SQUEEZENET_HALF), "alex": (ALEXNET,), "vgg": (VGG16,)}
CONVNEXT_S = _published("convnext_small-0c510722.pth", 192)
INCEPTION = _published(
    "weights-inception-2015-12-05-6726825d.pth",
    91,
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0",
)
# Inception v3 as far as Mixed_6e, trained on another classification: see `titokc.judge.inception`.
INCEPTION_STAND_IN = NetworkFile(
    "inception-768.safetensors", "566e41c37fc9470eb1defb2be8d55c88e636836113a5a8ba3157f04de522fde9", 18.1
)


def find(
    files: NetworkFile | Sequence[NetworkFile],
    folder: Path | None = None,
    *,
    download: bool = False,
    used_for: str = "",
    without: str = "allow the download (--download-weights)",
) -> Found:
    """The first of these files (each of which would do) that is there, its hash checked.

    Looked for in `folder` if given, in $TITOKC_WEIGHTS_DIR if set, and in torch's hub cache, where `download` puts the
    first of them that is published. Raises MetricWeightsMissingError, which says all that, and `without`: what else can
    be done.
    """
    files = [files] if isinstance(files, NetworkFile) else files
    places = [folder] if folder else []
    if named := os.environ.get("TITOKC_WEIGHTS_DIR"):
        places.append(expanded(named))
    places.append(_hub_cache())
    for file in files:
        for place in places:
            if (place / file.name).is_file():
                return _checked(place / file.name, file)
    published = [file for file in files if file.url]
    if download and published:
        return _download(published[0], _hub_cache() / published[0].name)
    named = " or ".join(f"{file.name} ({file.megabytes} MB)" for file in files)
    where = ", ".join(str(place) for place in places)
    getting = f"get it from {published[0].url} into one of these folders" if published else "put it into one of these"
    purpose = f" for {used_for}" if used_for else ""
    raise MetricWeightsMissingError(f"{named}{purpose} is not in {where}; {getting}, or {without}")


def _hub_cache() -> Path:
    """torch.hub.get_dir()/checkpoints, without importing torch."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(os.environ.get("TORCH_HOME") or f"{cache_home}/torch") / "hub" / "checkpoints"


def _checked(path: Path, file: NetworkFile) -> Found:
    digest = sha256(path)
    if not digest.startswith(file.sha256):
        raise MetricWeightsMissingError(
            f"{path} is damaged or another file: its SHA-256 starts with {digest[:8]}, expected {file.sha256[:8]}"
        )
    return Found(path, digest)


def _download(file: NetworkFile, target: Path) -> Found:
    from torch.hub import download_url_to_file

    assert file.url is not None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        download_url_to_file(file.url, str(target), hash_prefix=file.sha256)
    except (OSError, RuntimeError) as error:  # no connection; the hash is wrong
        detail = " ".join(str(error).split())
        raise MetricWeightsMissingError(f"{file.url} could not be downloaded: {detail}") from error
    return _checked(target, file)
