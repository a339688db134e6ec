"""METRICS: every metric by its name, what it is, and how it is measured; `Judge` has those that can run here.

A metric of pictures compares an original with a picture; a metric of sets compares what it keeps of all originals with
what it keeps of all pictures. Pictures are uint8 [H, W, 3]. A new metric is a function or a class in this room, and an
entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from titokc.errors import MetricWeightsMissingError, UsageError
from titokc.judge import pixels, texture
from titokc.judge.distances import frechet_distance, kernel_distance
from titokc.judge.files import LPIPS_TRUNKS

if TYPE_CHECKING:
    from torch import Tensor

FEWEST_VECTORS = 2048  # of a set, below which a distance depends on their number
SMALLEST_SIDE = 32  # of pictures that LPIPS's trunks can halve as often as they do


class Networks:
    """What metrics ask of networks, each loaded when the first does, and shared."""

    def __init__(self, device: str = "cpu", folder: Path | None = None, *, download: bool = False) -> None:
        """device: "auto" is a GPU if there is one. folder, download: as `titokc.judge.files.find` takes them."""
        self.asked_device = device
        self.finding: dict[str, Any] = {"folder": folder, "download": download}
        self._loaded: dict[str, Any] = {}
        self._kept: dict[str, list[tuple[np.ndarray, Any]]] = {}

    @cached_property
    def device(self) -> str:
        import torch

        if self.asked_device != "auto":
            return self.asked_device
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"

    def load(self, name: str) -> Any:
        """ "lite0" (with ELD), a trunk of LPIPS, or Inception: "official" or "stand_in"; `weights` are its files."""
        if name not in self._loaded:
            network: Any
            if name in ("official", "stand_in"):
                from titokc.judge.inception import Inception

                network = Inception(stand_in=name == "stand_in", **self.finding)
            else:
                from titokc.judge.networks import LPIPS, EfficientNetDistance

                network = LPIPS(name, **self.finding) if name in LPIPS_TRUNKS else EfficientNetDistance()
            self._loaded[name] = network.to(self.device)
        return self._loaded[name]

    def features(self, name: str, picture: np.ndarray) -> Any:
        """Lite0's stages [1, C, h, w], or Inception's features [1, D] by their number.

        Those of the last two pictures are kept: originals come up again and again, beside one picture each time.
        """
        import torch

        kept = self._kept.setdefault(name, [])
        for at, (known, value) in enumerate(kept):
            if known is picture:
                kept.append(kept.pop(at))
                return value
        network, pixels = self.load(name), self.tensor(picture)
        with torch.inference_mode():
            value = network.network.features(pixels / 255) if name == "lite0" else network(pixels)
        kept[:] = [*kept[-1:], (picture, value)]
        return value

    def lpips(self, trunk: str, original: np.ndarray, picture: np.ndarray) -> float | None:
        if min(original.shape[:2]) < SMALLEST_SIDE:
            return None
        return float(self.load(trunk)(self.tensor(picture) / 255, self.tensor(original) / 255))

    def eld(self, original: np.ndarray, picture: np.ndarray) -> float:
        return float(self.load("lite0").between(self.features("lite0", picture), self.features("lite0", original)))

    def lite0_vectors(self, picture: np.ndarray) -> np.ndarray:
        """Float32 [n, 320], one for every 32x32 pixels."""
        return self.features("lite0", picture)[-1][0].flatten(1).T.cpu().numpy()

    def patch_vectors(self, picture: np.ndarray) -> np.ndarray:
        """Inception's features of the picture's patches, float32 [n, 2048]."""
        side = 64 if min(picture.shape[:2]) < 512 else 256
        rows = [self.load("official")(self.tensor(patch))[2048] for patch in patches(picture, side)]
        return np.concatenate([row.cpu().numpy() for row in rows]) if rows else np.zeros((0, 2048), np.float32)

    def tensor(self, picture: np.ndarray) -> Tensor:
        """uint8 [H, W, 3] -> float32 [1, 3, H, W], 0 to 255."""
        import torch

        return torch.from_numpy(np.array(picture)).to(self.device).permute(2, 0, 1)[None].float()


def patches(picture: np.ndarray, side: int) -> list[np.ndarray]:
    """All whole side x side squares of two grids, the second shifted by half a square (arXiv 2006.09965, appendix)."""
    height, width = picture.shape[:2]
    return [
        picture[top : top + side, left : left + side]
        for shift in (0, side // 2)
        for top in range(shift, height - side + 1, side)
        for left in range(shift, width - side + 1, side)
    ]


@dataclass(frozen=True)
class Metric:
    """`digits` after the point. `network`: the name that `Networks` loads it by. `usual`: measured unasked.

    `measure`: (original, picture) -> value, None where there is none; with a `distance`, one of sets: picture ->
    vectors [n, D], and the vectors of all originals and of all pictures -> value. With a `network`, `measure` is given
    the `Networks` first.
    """

    label: str
    digits: int
    definition: str
    measure: Callable[..., Any] | None = None
    distance: Callable[[np.ndarray, np.ndarray], float | None] | None = None
    network: str = ""
    higher_is_better: bool = False
    usual: bool = True

    @property
    def of(self) -> str:
        """ "picture" (a value of each), "set" (one of all pictures of a codec and budget) or "codec"."""
        return "set" if self.distance else "picture" if self.measure else "codec"

    def described(self) -> dict[str, Any]:
        """What is to be known of it, for JSON."""
        names = ("label", "higher_is_better", "of", "digits", "definition", "usual")
        return {name: getattr(self, name) for name in names}


def _lpips(trunk: str, usual: bool = True) -> Metric:
    definition = f"lpips 0.1, {trunk} trunk, pictures in [-1, 1] at their own size"
    measure = lambda networks, *pair: networks.lpips(trunk, *pair)  # noqa: E731
    return Metric(f"LPIPS ({trunk})", 3, definition, measure, network=trunk, usual=usual)


def _inception(kind: str, label: str, count: int, network: str, usual: bool = False) -> Metric:
    distance, digits = {"Frechet": (frechet_distance, 2), "kernel": (kernel_distance, 4)}[kind]
    weights = "FID's weights" + ("" if count == 2048 else ", but not FID's features")
    if network == "stand_in":
        weights = "a STAND-IN of other weights and preprocessing: not FID, compare within this table only"
    definition = f"{kind} distance of the {count:,} averaged features of Inception v3, whole pictures; {weights}"
    measure = lambda networks, picture: networks.features(network, picture)[count].cpu().numpy()  # noqa: E731
    return Metric(label, digits, definition, measure, distance, network, usual=usual)


METRICS = {
    "psnr": Metric(
        "PSNR (dB)",
        2,
        "peak 255, over R, G and B of all pixels; mean of the pictures' values, where an exact copy counts as 100 dB",
        pixels.psnr,
        higher_is_better=True,
    ),
    "ssim": Metric(
        "SSIM",
        3,
        "Gaussian window, sigma 1.5, 11x11; data range 255; mean of R, G and B; as scikit-image",
        pixels.ssim,
        higher_is_better=True,
    ),
    "ms_ssim": Metric(
        "MS-SSIM",
        3,
        "five scales of the published weights; window and data range as SSIM; mean of R, G and B",
        pixels.ms_ssim,
        higher_is_better=True,
    ),
    "lpips_squeeze": _lpips("squeeze"),
    "lpips_alex": _lpips("alex"),
    "lpips_vgg": _lpips("vgg", usual=False),
    "eld": Metric(
        "ELD",
        3,
        "EfficientNet-Lite0 distance: squared distance of unit feature vectors, mean of positions and five stages",
        Networks.eld,
        network="lite0",
    ),
    "mean_psnr": Metric(
        "PSNR of 8x8 means (dB)",
        2,
        "PSNR of the means of 8x8 pixels: grain does not lower it, wrong colours and shapes do",
        texture.mean_psnr,
        higher_is_better=True,
        usual=False,
    ),
    "rfid": _inception("Frechet", "rFID", 2048, "official", usual=True),
    "kid": _inception("kernel", "KID", 2048, "official", usual=True),
    "fid_768": _inception("Frechet", "FID-768", 768, "official"),
    "kid_768": _inception("kernel", "KID-768", 768, "official"),
    "fid_192": _inception("Frechet", "FID-192", 192, "official"),
    "kid_192": _inception("kernel", "KID-192", 192, "official"),
    "fid_768_stand_in": _inception("Frechet", "FID-768 (stand-in)", 768, "stand_in", usual=True),
    "kid_768_stand_in": _inception("kernel", "KID-768 (stand-in)", 768, "stand_in", usual=True),
    "fid_192_stand_in": _inception("Frechet", "FID-192 (stand-in)", 192, "stand_in"),
    "kid_192_stand_in": _inception("kernel", "KID-192 (stand-in)", 192, "stand_in"),
    # Inception on every patch takes longer than all the rest together.
    "patch_fid": Metric(
        "patch-FID",
        1,
        "rFID of square patches from two shifted grids: 256 pixels, 64 for pictures under 512 pixels on a side",
        Networks.patch_vectors,
        frechet_distance,
        "official",
        usual=False,
    ),
    "fd_lite0": Metric(
        "FD-lite0",
        1,
        "Frechet distance of EfficientNet-Lite0's last-stage vectors (320 values), one for every 32x32 pixels; not FID",
        Networks.lite0_vectors,
        frechet_distance,
        "lite0",
    ),
    "smooth": Metric(
        "smooth blocks",
        2,
        "luma deviation in the originals' smooth 16x16 blocks (under 3 of 255), over theirs; 1 is right, more invented",
        texture.deviations,
        texture.smooth_ratio,
        usual=False,
    ),
    "busy": Metric(
        "busy blocks",
        2,
        "the same in the quarter of the blocks where the originals deviate most; 1 is right, less is missing",
        texture.deviations,
        texture.busy_ratio,
        higher_is_better=True,
        usual=False,
    ),
    "peak_memory": Metric(
        "peak memory (MB)", 0, "largest resident size of a fresh process that encodes and decodes one picture"
    ),
}
USUAL = tuple(name for name, metric in METRICS.items() if metric.usual)
PICTURE_METRICS = tuple(name for name, metric in METRICS.items() if metric.of == "picture")
SET_METRICS = tuple(name for name, metric in METRICS.items() if metric.of == "set")


def parse_metrics(text: str) -> tuple[str, ...]:
    """ "psnr,ms-ssim" -> names; "all" is all of them. UsageError for one that is not there."""
    if text == "all":
        return tuple(METRICS)
    names = tuple(part.strip().lower().replace("-", "_") for part in text.split(",") if part.strip())
    for name in names:
        if name not in METRICS:
            choices = ", ".join(METRICS).replace("_", "-")
            raise UsageError(f"no metric {name.replace('_', '-')!r}: choose from {choices}, or all")
    if not names:
        raise UsageError("--metrics names none")
    return tuple(dict.fromkeys(names))


class Judge:
    """The metrics that were asked for, as far as they can run: `unavailable` has why others cannot.

    Networks are loaded once, when this is made. `weights`: of each metric, the files of its network, name -> SHA-256.
    """

    def __init__(self, names: Iterable[str], networks: Networks) -> None:
        self.networks = networks
        self.metrics: dict[str, Metric] = {}
        self.unavailable: dict[str, str] = {}
        self.weights: dict[str, dict[str, str]] = {}
        for name in names:
            metric = METRICS[name]
            try:
                if metric.network:
                    self.weights[name] = networks.load(metric.network).weights
                self.metrics[name] = metric
            except MetricWeightsMissingError as error:
                self.unavailable[name] = str(error)

    def names_of(self, what: str) -> list[str]:
        """The metrics of "picture", "set" or "codec" that can run."""
        return [name for name, metric in self.metrics.items() if metric.of == what]

    def picture(self, original: np.ndarray, picture: np.ndarray) -> dict[str, float | None]:
        """One value for each metric of pictures; None where it is not defined for pictures of this size."""
        return {name: self._measure(name, original, picture) for name in self.names_of("picture")}

    def features(self, pictures: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
        """What `sets` compares: the vectors of a set of pictures, by the metric's name."""
        kept: dict[str, list[np.ndarray]] = {name: [] for name in self.names_of("set")}
        for picture in pictures:
            for name, vectors in kept.items():
                vectors.append(self._measure(name, picture))
        return {name: np.concatenate(vectors) for name, vectors in kept.items()}

    def sets(self, originals: dict[str, np.ndarray], pictures: dict[str, np.ndarray]) -> dict[str, Any]:
        """One value for each metric of sets (None with less than two vectors), and "vectors": how many there were."""
        values: dict[str, Any] = {"vectors": {name: len(vectors) for name, vectors in pictures.items()}}
        for name in self.names_of("set"):
            enough = min(len(originals[name]), len(pictures[name])) > 1
            distance = self.metrics[name].distance
            values[name] = distance(originals[name], pictures[name]) if distance and enough else None
        return values

    def _measure(self, name: str, *pictures: np.ndarray) -> Any:
        metric = self.metrics[name]
        assert metric.measure is not None
        return metric.measure(*([self.networks] if metric.network else []), *pictures)


def set_note(name: str, vectors: int) -> str:
    """What must be said beside a distance of sets of so many vectors."""
    if vectors >= FEWEST_VECTORS or name in ("smooth", "busy"):
        return ""
    return f"only {vectors} vectors, {FEWEST_VECTORS} would be wanted: compare within this table only"
