"""The metrics by name: which of them can run here, and their values for a picture or for a set of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from titokc.errors import MetricWeightsMissingError, UsageError
from titokc.judge import pixels

if TYPE_CHECKING:
    import torch

    from titokc.bench.networks import Inception, Lite0

FEWEST_FOR_FID = 2048


@dataclass(frozen=True)
class Metric:
    """`of`: "picture" (a value in each row), "set" (one for all pictures of a codec and budget) or "codec"."""

    label: str
    higher_is_better: bool
    of: str
    definition: str


METRICS = {
    "psnr": Metric(
        "PSNR (dB)", True, "picture", "peak 255, over R, G and B of all pixels; mean of the pictures' values"
    ),
    "ssim": Metric(
        "SSIM", True, "picture", "scikit-image; Gaussian window, sigma 1.5, 11x11; data range 255; mean of R, G and B"
    ),
    "ms_ssim": Metric(
        "MS-SSIM",
        True,
        "picture",
        "five scales of the published weights; window and data range as SSIM; mean of R, G and B",
    ),
    "lpips": Metric("LPIPS", False, "picture", "lpips 0.1, AlexNet trunk, pictures in [-1, 1] at their own size"),
    "eld": Metric(
        "ELD",
        False,
        "picture",
        "EfficientNet-Lite0 distance: squared distance of unit feature vectors, mean of positions and five stages",
    ),
    "rfid": Metric("rFID", False, "set", "Frechet distance of torch-fidelity's Inception v3 features, whole pictures"),
    "kid": Metric("KID", False, "set", "kernel distance of the same features (cubic kernel, subsets of at most 1,000)"),
    "patch_fid": Metric(
        "patch-FID",
        False,
        "set",
        "rFID of square patches from two shifted grids: 256 pixels, 64 for pictures under 512 pixels on a side",
    ),
    "fd_lite0": Metric(
        "FD-lite0",
        False,
        "set",
        "Frechet distance of EfficientNet-Lite0's last-stage vectors (320 values), one for every 32x32 pixels; not FID",
    ),
    "peak_memory": Metric(
        "peak memory (MB)",
        False,
        "codec",
        "largest resident size of a fresh process that encodes and decodes one picture",
    ),
}
# Inception on every patch takes longer than all the rest together.
DEFAULT_METRICS = tuple(name for name in METRICS if name != "patch_fid")


def parse_metrics(text: str) -> tuple[str, ...]:
    """ "psnr,ms-ssim" -> names; "all" is all of them. UsageError for one that is not there."""
    if text == "all":
        return tuple(METRICS)
    names = tuple(part.strip().lower().replace("-", "_") for part in text.split(",") if part.strip())
    for name in names:
        if name not in METRICS:
            raise UsageError(f"no metric {name!r}: choose from {', '.join(METRICS)}, or all")
    return tuple(dict.fromkeys(names))


class Measures:
    """The metrics that were asked for, as far as they can run. Networks are loaded once, when this is made."""

    def __init__(
        self, names: Iterable[str], *, device: str = "auto", weights: Path | None = None, download: bool = False
    ) -> None:
        """`weights`: the folder looked in first for LPIPS's and Inception's files. `download`: may they be fetched?"""
        self.names = tuple(names)
        self.unavailable: dict[str, str] = {}
        self._device_name = device
        self._pairwise: dict[str, Callable[[Image.Image, Image.Image], float | None]] = {
            "psnr": lambda *pair: pixels.psnr(*map(np.asarray, pair)),
            "ssim": lambda *pair: pixels.ssim(*map(np.asarray, pair)),
            "ms_ssim": lambda *pair: pixels.ms_ssim(*map(np.asarray, pair)),
        }
        self._inception: Inception | None = None
        self._load("lpips", lambda: self._add_lpips(weights, download))
        self._load("eld", self._add_eld)
        self._load("fd_lite0", lambda: self._lite0)
        for name in ("rfid", "kid", "patch_fid"):
            self._load(name, lambda: self._load_inception(weights, download))

    def names_of(self, what: str) -> list[str]:
        """The metrics of "picture", "set" or "codec" that can run."""
        return [name for name in self.names if METRICS[name].of == what and name not in self.unavailable]

    def picture(self, original: Image.Image, picture: Image.Image) -> dict[str, float | None]:
        """One value for each metric of pictures; None where it is not defined for pictures of this size."""
        return {name: self._pairwise[name](original, picture) for name in self.names_of("picture")}

    def features(self, pictures: Iterable[Image.Image]) -> dict[str, np.ndarray]:
        """What `sets` compares: the feature vectors of a set of pictures, by the metric's name."""
        from titokc.bench.networks import patches

        wanted = self.names_of("set")
        whole, parts, lite = [], [], []
        for picture in pictures:
            if "fd_lite0" in wanted:
                lite.append(self._lite0.stages(picture)[-1][0].flatten(1).T.cpu().numpy())
            if self._inception is not None:
                if {"rfid", "kid"} & set(wanted):
                    whole.append(self._inception.features([picture]))
                if "patch_fid" in wanted:
                    parts.append(self._inception.features(patches(picture, 64 if min(picture.size) < 512 else 256)))
        found = {"fd_lite0": lite, "rfid": whole, "kid": whole, "patch_fid": parts}
        return {name: np.concatenate(found[name]) for name in wanted}

    def sets(self, originals: dict[str, np.ndarray], pictures: dict[str, np.ndarray]) -> dict[str, Any]:
        """One value for each metric of sets (None with less than two vectors), and "vectors": how many there were."""
        from titokc.bench.networks import frechet_distance, kernel_distance

        values: dict[str, Any] = {"vectors": {name: len(vectors) for name, vectors in pictures.items()}}
        for name in self.names_of("set"):
            distance = kernel_distance if name == "kid" else frechet_distance
            enough = min(len(originals[name]), len(pictures[name])) > 1
            values[name] = distance(originals[name], pictures[name]) if enough else None
        return values

    def _load(self, name: str, load: Callable[[], object]) -> None:
        if name in self.names:
            try:
                load()
            except MetricWeightsMissingError as error:
                self.unavailable[name] = str(error)

    def _add_lpips(self, weights: Path | None, download: bool) -> None:
        from titokc.bench.networks import LPIPS

        self._pairwise["lpips"] = LPIPS(self._device, weights, download=download)

    def _add_eld(self) -> None:
        from titokc.bench.networks import ELD

        self._pairwise["eld"] = ELD(self._lite0)

    def _load_inception(self, weights: Path | None, download: bool) -> None:
        from titokc.bench.networks import Inception

        if self._inception is None:
            self._inception = Inception(self._device, weights, download=download)

    @cached_property
    def _lite0(self) -> Lite0:
        from titokc.bench.networks import Lite0

        return Lite0(self._device)

    @cached_property
    def _device(self) -> torch.device:
        from titokc.inference import find_device

        return find_device(self._device_name)


def set_note(vectors: int) -> str:
    """What must be said beside a distance of sets of so many feature vectors."""
    if vectors >= FEWEST_FOR_FID:
        return ""
    return f"only {vectors} vectors, {FEWEST_FOR_FID} would be wanted: compare within this table only"
