"""Inception v3's features of whole pictures, for Frechet and kernel distances (`titokc.judge.distances`).

torch-fidelity has the network as FID uses it: TensorFlow's average pooling and its resizing, and both are taken from
there. What it does not take: a state dictionary instead of the official pickle, which it reads with code allowed, and
the stand-in's file, which ends at Mixed_6e and wants pixels in [0, 1]. So the layers are put together here.

    [B, 3, H, W], 0 to 255 -> 299x299 -> ... max pool: 192 -> ... Mixed_6e: 768 -> ... Mixed_7c: 2048, each averaged

The stand-in was initialised on ImageNet and trained on another classification: its distances compare pictures judged
with this file only, never with an FID published elsewhere, and 2,048 features it has not.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titokc.errors import WeightsError
from titokc.judge.files import INCEPTION, INCEPTION_STAND_IN, find
from titokc.judge.networks import package, read

SIDE = 299


class Inception(nn.Module):
    """Frozen; `weights`: its file's name -> SHA-256."""

    def __init__(self, *, stand_in: bool = False, **finding: Any) -> None:
        """**finding: as `titokc.judge.files.find` takes it."""
        super().__init__()
        self.stand_in = stand_in
        used_for = "FID-768 (stand-in)" if stand_in else "FID and KID"
        found = find(INCEPTION_STAND_IN if stand_in else INCEPTION, used_for=used_for, **finding)
        fid = package("torch_fidelity.feature_extractor_inceptionv3")
        resizing = package("torch_fidelity.interpolate_compat_tensorflow")
        self._resized = resizing.interpolate_bilinear_2d_like_tensorflow1x
        layers: dict[str, nn.Module] = {
            "Conv2d_1a_3x3": fid.BasicConv2d(3, 32, kernel_size=3, stride=2),
            "Conv2d_2a_3x3": fid.BasicConv2d(32, 32, kernel_size=3),
            "Conv2d_2b_3x3": fid.BasicConv2d(32, 64, kernel_size=3, padding=1),
            "MaxPool_1": nn.MaxPool2d(3, 2),
            "Conv2d_3b_1x1": fid.BasicConv2d(64, 80, kernel_size=1),
            "Conv2d_4a_3x3": fid.BasicConv2d(80, 192, kernel_size=3),
            "MaxPool_2": nn.MaxPool2d(3, 2),
        }
        layers |= {"Mixed_5b": fid.InceptionA(192, 32), "Mixed_5c": fid.InceptionA(256, 64)}
        layers |= {"Mixed_5d": fid.InceptionA(288, 64), "Mixed_6a": fid.InceptionB(288)}
        layers |= {f"Mixed_6{x}": fid.InceptionC(768, c) for x, c in zip("bcde", (128, 160, 160, 192), strict=True)}
        self.ends = {"MaxPool_2": 192, "Mixed_6e": 768}
        if not stand_in:
            layers |= {"Mixed_7a": fid.InceptionD(768), "Mixed_7b": fid.InceptionE_1(1280)}
            layers |= {"Mixed_7c": fid.InceptionE_2(2048)}
            self.ends["Mixed_7c"] = 2048
        self.layers = nn.ModuleDict(layers)
        tensors = {name: value.float() for name, value in read(found).items() if not name.startswith("fc.")}
        counters = {name: torch.tensor(0) for name in self.layers.state_dict() if name.endswith("num_batches_tracked")}
        try:
            self.layers.load_state_dict(counters | tensors)
        except RuntimeError as error:
            raise WeightsError(f"{found.path}: not the weights of Inception v3 ({error})") from error
        self.weights = {found.path.name: found.sha256}
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, pictures: Tensor) -> dict[int, Tensor]:
        """[B, 3, H, W], 0 to 255 -> {number of features: float32 [B, features]}: of 192, 768 and, but not of the
        stand-in, 2048."""
        if self.stand_in:
            x = F.interpolate(pictures / 255, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        else:
            x = (self._resized(pictures, size=(SIDE, SIDE), align_corners=False) - 128) / 128
        found = {}
        for name, layer in self.layers.items():
            x = layer(x)
            if name in self.ends:
                found[self.ends[name]] = x.mean((2, 3))
        return found
