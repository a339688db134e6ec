"""METRICS: every metric by its name, what it is, and how it is opened; `Judge` has those that can run here.

A metric of pictures compares an original with a picture; a metric of sets compares what it keeps of all originals with
what it keeps of all pictures. Pictures are uint8 [H, W, 3]. A new metric is a function or a class in this room, and an
entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from titokc.errors import MetricWeightsMissingError, UsageError
from titokc.judge import pixels, texture
from titokc.judge.distances import frechet_distance, kernel_distance

if TYPE_CHECKING:
    from torch import Tensor

    from titokc.judge.inception import Inception
    from titokc.judge.networks import EfficientNetDistance

FEWEST_VECTORS = 2048
SMALLEST_SIDE = 32  # of pictures that LPIPS's trunks can halve as often as they do
Pair = Callable[[np.ndarray, np.ndarray], "float | None"]


class OfSet(NamedTuple):
    """features: picture -> vectors [n, D]; distance: those of all originals and of all pictures -> value."""

    features: Callable[[np.ndarray], np.ndarray]
    distance: Callable[[np.ndarray, np.ndarray], float | None]
    fewest: int = FEWEST_VECTORS  # vectors, below which the value depends on their number


@dataclass(frozen=True)
class Metric:
    """`of`: "picture" (a value of each), "set" (one of all pictures of a codec and budget) or "codec".

    `open`: makes what measures. `usual`: whether it is measured unless metrics are named. `digits` after the point.
    """

    label: str
    higher_is_better: bool
    of: str
    digits: int
    definition: str
    open: Callable[[Networks], Any] | None = None
    usual: bool = True

    def described(self) -> dict[str, Any]:
        """Without what only code can use."""
        return {name: value for name, value in vars(self).items() if name != "open"}


class Networks:
    """What metrics are made of, loaded when one asks for it, and shared."""

    def __init__(self, device: str = "cpu", folder: Path | None = None, *, download: bool = False) -> None:
        """device: "auto" is a GPU if there is one. folder, download: as `titokc.judge.files.find` takes them."""
        self.asked_device = device
        self.finding: dict[str, Any] = {"folder": folder, "download": download}

    @cached_property
    def device(self) -> str:
        import torch

        if self.asked_device != "auto":
            return self.asked_device
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"

    @cached_property
    def eld(self) -> EfficientNetDistance:
        from titokc.judge.networks import EfficientNetDistance

        return EfficientNetDistance().to(self.device)

    def lpips(self, trunk: str) -> Pair:
        from titokc.judge.networks import LPIPS

        network = LPIPS(trunk, **self.finding).to(self.device)

        def distance(original: np.ndarray, picture: np.ndarray) -> float | None:
            if min(original.shape[:2]) < SMALLEST_SIDE:
                return None
            return float(network(self.tensor(picture) / 255, self.tensor(original) / 255))

        return _with_weights(distance, network.weights)

    @cached_property
    def lite0_stages(self) -> Callable[[np.ndarray], list[Tensor]]:
        return _keeping_two(lambda picture: self.eld.network.features(self.tensor(picture) / 255))

    def eld_pair(self) -> Pair:
        def distance(original: np.ndarray, picture: np.ndarray) -> float:
            return float(self.eld.between(self.lite0_stages(picture), self.lite0_stages(original)))

        return _with_weights(distance, self.eld.weights)

    def fd_lite0(self) -> OfSet:
        weights = self.eld.weights

        def vectors(picture: np.ndarray) -> np.ndarray:
            return self.lite0_stages(picture)[-1][0].flatten(1).T.cpu().numpy()

        return OfSet(_with_weights(vectors, weights), frechet_distance)

    @cached_property
    def official(self) -> Inception:
        from titokc.judge.inception import Inception

        return Inception((192, 768, 2048), **self.finding).to(self.device)

    @cached_property
    def stand_in(self) -> Inception:
        from titokc.judge.inception import Inception

        return Inception((192, 768), stand_in=True, **self.finding).to(self.device)

    @cached_property
    def inception_vectors(self) -> dict[str, Callable[[np.ndarray], dict[int, Tensor]]]:
        """By the name of the network, so that several distances share what was computed of a picture."""
        return {
            "official": _keeping_two(lambda picture: self.official(self.tensor(picture))),
            "stand_in": _keeping_two(lambda picture: self.stand_in(self.tensor(picture))),
        }

    def inception(self, network: str, count: int, distance: Callable[..., float]) -> OfSet:
        weights = getattr(self, network).weights

        def vectors(picture: np.ndarray) -> np.ndarray:
            return self.inception_vectors[network](picture)[count].cpu().numpy()

        return OfSet(_with_weights(vectors, weights), distance)

    def patches(self) -> OfSet:
        def vectors(picture: np.ndarray) -> np.ndarray:
            side = 64 if min(picture.shape[:2]) < 512 else 256
            rows = [self.official(self.tensor(patch))[2048] for patch in patches(picture, side)]
            return np.concatenate([row.cpu().numpy() for row in rows]) if rows else np.zeros((0, 2048), np.float32)

        return OfSet(_with_weights(vectors, self.official.weights), frechet_distance)

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


def _with_weights(function: Any, weights: dict[str, str]) -> Any:
    function.weights = weights
    return function


def _keeping_two(function: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], Any]:
    """The last two results are kept: originals come up again and again, beside one picture each time."""
    kept: list[tuple[np.ndarray, Any]] = []

    def remembered(picture: np.ndarray) -> Any:
        import torch

        for at, (known, value) in enumerate(kept):
            if known is picture:
                kept.append(kept.pop(at))
                return value
        with torch.inference_mode():
            value = function(picture)
        kept[:] = [*kept[-1:], (picture, value)]
        return value

    return remembered


def _lpips(trunk: str, usual: bool = True) -> Metric:
    definition = f"lpips 0.1, {trunk} trunk, pictures in [-1, 1] at their own size"
    return Metric(f"LPIPS ({trunk})", False, "picture", 3, definition, lambda networks: networks.lpips(trunk), usual)


def _inception(kind: str, label: str, count: int, network: str, usual: bool = False) -> Metric:
    distance, digits = {"Frechet": (frechet_distance, 2), "kernel": (kernel_distance, 4)}[kind]
    features = f"{kind} distance of the {count:,} averaged features of Inception v3, whole pictures; "
    of = {
        "official": "FID's weights" + ("" if count == 2048 else ", but not FID's features"),
        "stand_in": "a STAND-IN of other weights and preprocessing: not FID, compare within this table only",
    }
    return Metric(
        label,
        False,
        "set",
        digits,
        features + of[network],
        lambda networks: networks.inception(network, count, distance),
        usual,
    )


METRICS = {
    "psnr": Metric(
        "PSNR (dB)",
        True,
        "picture",
        2,
        "peak 255, over R, G and B of all pixels; mean of the pictures' values, where an exact copy counts as 100 dB",
        lambda _: pixels.psnr,
    ),
    "ssim": Metric(
        "SSIM",
        True,
        "picture",
        3,
        "Gaussian window, sigma 1.5, 11x11; data range 255; mean of R, G and B; as scikit-image",
        lambda _: pixels.ssim,
    ),
    "ms_ssim": Metric(
        "MS-SSIM",
        True,
        "picture",
        3,
        "five scales of the published weights; window and data range as SSIM; mean of R, G and B",
        lambda _: pixels.ms_ssim,
    ),
    "lpips_squeeze": _lpips("squeeze"),
    "lpips_alex": _lpips("alex"),
    "lpips_vgg": _lpips("vgg", usual=False),
    "eld": Metric(
        "ELD",
        False,
        "picture",
        3,
        "EfficientNet-Lite0 distance: squared distance of unit feature vectors, mean of positions and five stages",
        lambda networks: networks.eld_pair(),
    ),
    "mean_psnr": Metric(
        "PSNR of 8x8 means (dB)",
        True,
        "picture",
        2,
        "PSNR of the means of 8x8 pixels: grain does not lower it, wrong colours and shapes do",
        lambda _: texture.mean_psnr,
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
        False,
        "set",
        1,
        "rFID of square patches from two shifted grids: 256 pixels, 64 for pictures under 512 pixels on a side",
        lambda networks: networks.patches(),
        usual=False,
    ),
    "fd_lite0": Metric(
        "FD-lite0",
        False,
        "set",
        1,
        "Frechet distance of EfficientNet-Lite0's last-stage vectors (320 values), one for every 32x32 pixels; not FID",
        lambda networks: networks.fd_lite0(),
    ),
    "smooth": Metric(
        "smooth blocks",
        False,
        "set",
        2,
        "luma deviation in the originals' smooth 16x16 blocks (under 3 of 255), over theirs; 1 is right, more invented",
        lambda _: OfSet(texture.deviations, texture.smooth_ratio, 1),
        usual=False,
    ),
    "busy": Metric(
        "busy blocks",
        True,
        "set",
        2,
        "the same in the quarter of the blocks where the originals deviate most; 1 is right, less is missing",
        lambda _: OfSet(texture.deviations, texture.busy_ratio, 1),
        usual=False,
    ),
    "peak_memory": Metric(
        "peak memory (MB)",
        False,
        "codec",
        0,
        "largest resident size of a fresh process that encodes and decodes one picture",
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
        self.names = tuple(names)
        self.unavailable: dict[str, str] = {}
        self.weights: dict[str, dict[str, str]] = {}
        self._opened: dict[str, Any] = {}
        for name in self.names:
            opening = METRICS[name].open
            try:
                opened = opening(networks) if opening else None
            except MetricWeightsMissingError as error:
                self.unavailable[name] = str(error)
                continue
            self._opened[name] = opened
            measure = opened.features if isinstance(opened, OfSet) else opened
            if weights := getattr(measure, "weights", None):
                self.weights[name] = weights

    def names_of(self, what: str) -> list[str]:
        """The metrics of "picture", "set" or "codec" that can run."""
        return [name for name in self._opened if METRICS[name].of == what]

    def picture(self, original: np.ndarray, picture: np.ndarray) -> dict[str, float | None]:
        """One value for each metric of pictures; None where it is not defined for pictures of this size."""
        return {name: self._opened[name](original, picture) for name in self.names_of("picture")}

    def features(self, pictures: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
        """What `sets` compares: the vectors of a set of pictures, by the metric's name."""
        kept: dict[str, list[np.ndarray]] = {name: [] for name in self.names_of("set")}
        for picture in pictures:
            for name, vectors in kept.items():
                vectors.append(self._opened[name].features(picture))
        return {name: np.concatenate(vectors) for name, vectors in kept.items()}

    def sets(self, originals: dict[str, np.ndarray], pictures: dict[str, np.ndarray]) -> dict[str, Any]:
        """One value for each metric of sets (None with less than two vectors), and "vectors": how many there were."""
        values: dict[str, Any] = {"vectors": {name: len(vectors) for name, vectors in pictures.items()}}
        for name in self.names_of("set"):
            enough = min(len(originals[name]), len(pictures[name])) > 1
            values[name] = self._opened[name].distance(originals[name], pictures[name]) if enough else None
        return values


def set_note(name: str, vectors: int) -> str:
    """What must be said beside a distance of sets of so many vectors."""
    if vectors >= FEWEST_VECTORS or name in ("smooth", "busy"):
        return ""
    return f"only {vectors} vectors, {FEWEST_VECTORS} would be wanted: compare within this table only"
