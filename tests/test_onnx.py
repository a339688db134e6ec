"""`titokc models export --onnx`: what a stranger gets decodes as titokc does, and what cannot be exported says why."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from titokc import models, weights
from titokc.cli import main
from titokc.engines import light
from titokc.models.nano.config import NanoConfig
from titokc.models.nano.noise import noise
from titokc.weights import places
from titokc.weights.onnx import export as export_graphs

ROOT = Path(__file__).parents[1]
VECTORS = json.loads((ROOT / "formats" / "nano" / "vectors.json").read_text("utf-8"))
# The export of the embedded model takes 15 s of processor time, and minutes on a busy machine.
pytestmark = pytest.mark.timeout(900)
KINDS = {"int8": "<i1", "int32": "<i4", "float32": "<f4"}


def export(*arguments: str):
    return CliRunner().invoke(main, ["models", "export", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(onnx_folder):
    pytest.importorskip("onnxruntime")
    return onnx_folder


@pytest.fixture(scope="module")
def about(folder):
    return json.loads((folder / "model.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def coefficients(folder, about):
    """A function from indices to coefficients float32 [C]: the second decoder of nano's code, with exported tables."""
    spec = importlib.util.spec_from_file_location("second", Path(__file__).with_name("test_nano_code.py"))
    second = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(second)
    data = (folder / about["quantizer"]["file"]).read_bytes()
    tables = {
        name: np.frombuffer(data, KINDS[at["type"]], at["bytes"] // np.dtype(KINDS[at["type"]]).itemsize, at["offset"])
        .reshape(at["shape"])
        .astype(np.float32 if at["type"] == "float32" else np.int64)
        for name, at in about["quantizer"]["tensors"].items()
    }  # fmt: skip
    assert about["quantizer"]["step"] == second.STEP
    assert about["quantizer"]["evidence"] == second.EVIDENCE

    def found(indices):
        return np.array(second.decode(tables, indices)[1], np.float32) * tables["unit"]

    return found


@pytest.fixture(scope="module")
def run(folder):
    """A function that runs a graph by name with inputs by name and gives its outputs."""
    import onnxruntime

    sessions = {path.stem: onnxruntime.InferenceSession(path) for path in folder.glob("*.onnx")}
    return lambda name, **inputs: sessions[name].run(None, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("names", [("coffee-128", "scattered"), ("chelsea-32",), ("one-token",)])
def test_a_stranger_decodes_both_looks_as_titokc_does(about, coefficients, run, names):
    tokens = np.array([VECTORS[name]["indices"] for name in names])
    side, counts = about["side"], np.full(len(tokens), tokens.shape[1], np.int32)
    picture, features = run(
        "decoder", coefficients=np.stack([coefficients(row) for row in tokens.tolist()]), tokens=counts
    )
    drawn = np.stack([noise(row, 8 * (side // 4) ** 2 + 4 * (side // 2) ** 2) for row in tokens])
    coarse, fine = np.split(drawn, [8 * (side // 4) ** 2], 1)
    (natural,) = run(
        "natural",
        picture=picture,
        features=features,
        tokens=counts,
        noise=coarse.reshape(-1, 8, side // 4, side // 4),
        fine_noise=fine.reshape(-1, 4, side // 2, side // 2),
    )
    engine = light.load(places.locate("nano"))
    for look, made in (("faithful", picture), ("natural", natural)):
        pixels = np.rint(made.clip(0, 1) * 255).transpose(0, 2, 3, 1)
        assert np.abs(pixels - engine.decode(tokens, look)).max() <= 2
    assert about["looks"] == ["faithful", "natural"]


@pytest.mark.slow
def test_the_gradient_of_another_nano_is_that_of_the_search(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    config = NanoConfig(
        image_size=64, thumb_size=16, coefficients=256, num_tokens=16, codebook_size=64, width=32, layers=1
    )
    nano = models.build(config)
    for weight in nano.decoder.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    weights.save(nano, tmp_path / "nano", bits=8)
    export_graphs(tmp_path / "nano", tmp_path / "onnx", search=True)
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "gradient.onnx")
    rng, counts = np.random.default_rng(0), np.array([16, 8, 1], np.int32)
    coded = rng.normal(0, 0.1, (3, 256)).astype(np.float32)
    target = rng.random((3, 3, 64, 64), np.float32)
    errors, gradients = session.run(None, {"coefficients": coded, "tokens": counts, "picture": target})
    decoder = light.load(places.locate(tmp_path / "nano"))._decoder
    for row in range(3):
        made, _, backward = decoder(coded[row], int(counts[row]))
        made -= target[row]
        expected = backward(made * np.float32(2 / made.size))
        assert errors[row] == pytest.approx(np.square(made).mean(), rel=1e-5)
        assert np.abs(gradients[row] - expected).max() <= 1e-5 * np.abs(expected).max()
    assert json.loads((tmp_path / "onnx" / "model.json").read_text())["looks"] == ["faithful"]


@pytest.mark.slow
def test_graphs_hold_no_weights_and_the_ports_are_as_described(folder, about):
    import onnxruntime

    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["model.json", about["quantizer"]["file"], *about["graphs"]]
    )
    assert (folder / about["quantizer"]["file"]).read_bytes() == places.locate("nano").weights.read_bytes()
    for name, ports in about["graphs"].items():
        assert (folder / name).stat().st_size < 500_000
        session = onnxruntime.InferenceSession(folder / name)
        for found, described in ((session.get_inputs(), ports["inputs"]), (session.get_outputs(), ports["outputs"])):
            assert [(port.name, port.shape) for port in found] == [(port["name"], port["shape"]) for port in described]


class TestRefusals:
    def test_a_folder_that_is_there(self, tmp_path):
        result = export("nano", "--onnx", tmp_path)
        assert (result.exit_code, result.output) == (1, f"titokc: {tmp_path} exists: --force writes into it\n")

    def test_options_for_runs(self, tmp_path):
        result = export("nano", "--onnx", tmp_path / "new", "--bits", "8")
        assert result.exit_code == 2
        assert "-o, --last and --bits are for runs" in result.output
        assert export("nano", "--search").exit_code == 2

    def test_a_missing_package_is_named_with_its_command(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnx", None)
        monkeypatch.setitem(sys.modules, "onnxscript", None)
        result = export("nano", "--onnx", tmp_path / "new")
        assert result.exit_code == 2
        assert "pip install 'titokc[onnx]'" in result.output
        assert not (tmp_path / "new").exists()

    def test_weights_in_another_type(self, tmp_path):
        nano = models.build(
            NanoConfig(image_size=64, coefficients=64, num_tokens=8, codebook_size=16, width=8, layers=1)
        )
        weights.save(nano, tmp_path / "nano")
        path = tmp_path / "nano" / "model.safetensors"
        save_file(
            {name: each.half() if each.is_floating_point() else each for name, each in load_file(path).items()}, path
        )
        result = export(tmp_path / "nano", "--onnx", tmp_path / "new")
        assert result.exit_code == 2
        assert "F16, expected F32: titokc models convert writes it" in result.output

    def test_a_model_without_an_export(self, tmp_path, tiny):
        from titokc.errors import UsageError

        with pytest.raises(UsageError, match=r"^nano-1: models of its architecture have no ONNX export$"):
            tiny.export_onnx(tmp_path / "model.safetensors", {}, False)
