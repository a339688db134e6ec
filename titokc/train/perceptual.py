"""Perceptual distances for training, each a frozen network that is imported only when its weight is above 0."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titokc.errors import MetricWeightsMissingError
from titokc.models.efficientnet_lite import EfficientNetLite0

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_VGG16 = ("vgg16-397923af.pth", 528)
_CONVNEXT_S = ("convnext_small-0c510722.pth", 192)


class EfficientNetDistance(nn.Module):
    """Squared distance of unit feature vectors, averaged over positions and the five stages of EfficientNet-Lite0."""

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetLite0.pretrained()

    def forward(self, output: Tensor, images: Tensor) -> Tensor:
        """Two batches [B, 3, H, W] in [0, 1] -> scalar."""
        with torch.no_grad():
            wanted = self.network.features(images)
        found = self.network.features(output)
        distances = [
            (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean()
            for a, b in zip(found, wanted, strict=True)
        ]
        return torch.stack(distances).mean()


class LPIPS(nn.Module):
    """LPIPS 0.1 on VGG16 (arXiv 1801.03924), by the lpips package."""

    def __init__(self) -> None:
        super().__init__()
        _cached(*_VGG16)
        try:
            import lpips
        except ImportError as error:
            raise MetricWeightsMissingError("the lpips loss needs the lpips package: pip install lpips") from error
        self.network = lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)

    def forward(self, output: Tensor, images: Tensor) -> Tensor:
        """Two batches [B, 3, H, W] in [0, 1] -> scalar."""
        return self.network(output, images, normalize=True).float().mean()


class ConvNeXtDistance(nn.Module):
    """Mean squared difference of ConvNeXt-S logits at 224x224, as in TiTok's training; the network is torchvision's."""

    def __init__(self) -> None:
        super().__init__()
        weights = torch.load(_cached(*_CONVNEXT_S), map_location="cpu", weights_only=True)
        try:
            from torchvision.models import convnext_small
        except ImportError as error:
            raise MetricWeightsMissingError("the convnext loss needs torchvision: pip install torchvision") from error
        self.network = convnext_small()
        self.network.load_state_dict(weights)
        self.network.eval().requires_grad_(False)

    def forward(self, output: Tensor, images: Tensor) -> Tensor:
        """Two batches [B, 3, H, W] in [0, 1] -> scalar."""
        with torch.no_grad():
            wanted = self._logits(images)
        return F.mse_loss(self._logits(output), wanted)

    def _logits(self, images: Tensor) -> Tensor:
        small = F.interpolate(images, (224, 224), mode="bilinear", align_corners=False, antialias=True)
        mean = small.new_tensor(_IMAGENET_MEAN).view(3, 1, 1)
        std = small.new_tensor(_IMAGENET_STD).view(3, 1, 1)
        return self.network((small - mean) / std).float()


def _cached(name: str, megabytes: int) -> Path:
    """Where torch keeps downloaded weights; MetricWeightsMissingError unless the file is there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        raise MetricWeightsMissingError(
            f"{name} ({megabytes} MB) is not at {path}: get it from https://download.pytorch.org/models/{name}, "
            "or leave the term out (--set phases.0.losses.lpips=0, .convnext=0; .efficientnet=1 needs no download)"
        )
    return path


DISTANCES: dict[str, type[nn.Module]] = {
    "efficientnet": EfficientNetDistance,
    "lpips": LPIPS,
    "convnext": ConvNeXtDistance,
}
