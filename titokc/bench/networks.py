"""Distances that need a network: ELD and LPIPS between two pictures, Frechet and kernel distances between two sets.

Weights come from the efficientnet-lite0 package and from `titokc.weights.networks`; lpips, torch-fidelity and
torchvision are imported only here, and only when one of their distances is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from titokc.errors import MetricWeightsMissingError, WeightsError
from titokc.models.efficientnet_lite import EfficientNetLite0
from titokc.weights.networks import ALEXNET, INCEPTION, find_network

BATCH = 16


def as_tensor(picture: Image.Image) -> Tensor:
    """RGB picture -> uint8 [1, 3, H, W]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]


class Lite0:
    """EfficientNet-Lite0's features of one picture at a time; the last two are kept, as originals come up again."""

    def __init__(self, device: torch.device) -> None:
        self.network = EfficientNetLite0.pretrained().to(device)
        self.device = device
        self._kept: list[tuple[Image.Image, list[Tensor]]] = []

    @torch.inference_mode()
    def stages(self, picture: Image.Image) -> list[Tensor]:
        """The five stages, [1, C, h, w] each."""
        for at, (known, stages) in enumerate(self._kept):
            if known is picture:
                self._kept.append(self._kept.pop(at))
                return stages
        stages = self.network.features(as_tensor(picture).to(self.device).float() / 255)
        self._kept = [*self._kept[-1:], (picture, stages)]
        return stages


class ELD:
    """EfficientNet-Lite0 distance: 0 for equal pictures, at most 4.

    At every position of each of the five stages, the squared distance of the two feature vectors, scaled to length 1;
    averaged over positions, then over stages. LPIPS's construction (arXiv 1801.03924) without learnt weights.
    """

    def __init__(self, lite0: Lite0) -> None:
        self.lite0 = lite0

    @torch.inference_mode()
    def __call__(self, original: Image.Image, picture: Image.Image) -> float:
        pairs = zip(self.lite0.stages(original), self.lite0.stages(picture), strict=True)
        distances = [(F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean() for a, b in pairs]
        return float(torch.stack(distances).mean())


class LPIPS:
    """LPIPS 0.1 on AlexNet (the lpips package, its heads and the trunk's ImageNet weights); 0 for equal pictures."""

    def __init__(self, device: torch.device, folder: Path | None = None, *, download: bool = False) -> None:
        path = find_network(ALEXNET, folder, download=download)
        try:
            import lpips
        except ImportError as error:
            raise MetricWeightsMissingError(
                "the package lpips is not installed (pip install 'titokc[metrics]')"
            ) from error
        self.network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        trunk = torch.load(path, map_location="cpu", weights_only=True)
        self._fill_trunk(trunk, path)
        self._check_heads(Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth")
        self.network.to(device).eval().requires_grad_(False)
        self.device = device

    def _fill_trunk(self, weights: dict[str, Tensor], path: Path) -> None:
        """torchvision's features.N.* go to sliceM.N.*; lpips itself would download them, or leave them random."""
        names = {f"features.{name.partition('.')[2]}": name for name in self.network.net.state_dict()}
        try:
            self.network.net.load_state_dict({to: weights[name] for name, to in names.items()})
        except (KeyError, RuntimeError) as error:
            raise WeightsError(f"{path}: not the weights of torchvision's AlexNet ({error})") from error

    def _check_heads(self, path: Path) -> None:
        """lpips loads its heads with strict=False: a missing one would stay random."""
        heads = torch.load(path, map_location="cpu", weights_only=True)
        own = {name: value for name, value in self.network.state_dict().items() if name.startswith("lin")}
        unfilled = [name for name, value in own.items() if name not in heads and "lins." not in name]
        if unfilled or any(not torch.equal(own[name], value) for name, value in heads.items()):
            raise WeightsError(f"{path}: does not fill LPIPS's heads (missing: {', '.join(unfilled) or 'none'})")

    @torch.inference_mode()
    def __call__(self, original: Image.Image, picture: Image.Image) -> float:
        a, b = (as_tensor(image).to(self.device).float() / 127.5 - 1 for image in (original, picture))
        return float(self.network(a, b))


class Inception:
    """2048 features of FID's Inception v3 (torch-fidelity's port) for each picture."""

    def __init__(self, device: torch.device, folder: Path | None = None, *, download: bool = False) -> None:
        path = find_network(INCEPTION, folder, download=download)
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise MetricWeightsMissingError(
                "the package torch-fidelity is not installed (pip install 'titokc[metrics]')"
            ) from error
        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
        ).to(device)
        self.device = device

    @torch.inference_mode()
    def features(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """RGB pictures of any sizes -> float32 [n, 2048]."""
        rows = []
        for start in range(0, len(pictures), BATCH):
            batch = pictures[start : start + BATCH]
            groups = [batch] if len({picture.size for picture in batch}) == 1 else [[picture] for picture in batch]
            for group in groups:
                tensors = torch.cat([as_tensor(picture) for picture in group]).to(self.device)
                rows.append(self.network(tensors)[0].cpu().numpy())
        return np.concatenate(rows)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of the Gaussians fitted to two sets of feature vectors [n, D] (arXiv 1706.08500, eq. 6)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    difference = a.mean(0) - b.mean(0)
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The eigenvalues of a product of two covariances are real and not negative, up to rounding.
    cross = np.sqrt(np.maximum(np.linalg.eigvals(covariance_a @ covariance_b).real, 0)).sum()
    return float(difference @ difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """KID (arXiv 1801.01401): torch-fidelity's, cubic kernel, 100 subsets of at most 1,000 vectors."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    result: dict[str, Any] = kid_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(b), kid_subset_size=min(1000, len(a), len(b)), verbose=False
    )
    return float(result[KEY_METRIC_KID_MEAN])


def patches(picture: Image.Image, side: int) -> list[Image.Image]:
    """All whole side x side squares of two grids, the second shifted by half a square (arXiv 2006.09965, appendix)."""
    boxes = [
        (left, top, left + side, top + side)
        for shift in (0, side // 2)
        for top in range(shift, picture.height - side + 1, side)
        for left in range(shift, picture.width - side + 1, side)
    ]
    return [picture.crop(box) for box in boxes]
