"""Weights and configurations of strangers: what no model can be is refused by name, before memory is taken for it."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from titokc import models, weights
from titokc.errors import WeightsError
from titokc.models.nano.config import NanoConfig
from titokc.weights import places

NANO = NanoConfig(32, 16, 4, 48, 4, 2, 16, 2, 8, 2, 32, 2, 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weights.save(models.build(NANO), tmp_path / "nano")
    return tmp_path / "nano"


def change(folder: Path, **changes: torch.Tensor) -> None:
    """Writes some tensors anew, and no fingerprints."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors | {name.replace("__", "."): t for name, t in changes.items()}, path)


def test_float_codebooks_do_not_become_integers(folder: Path) -> None:
    change(folder, quantizer__codebooks=torch.full((4, 2, 16), 0.7))
    with pytest.raises(WeightsError, match=r"quantizer\.codebooks holds float32, expected int8"):
        weights.load(folder)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("coded", torch.arange(48, dtype=torch.int32) + 721, r"coded holds 721\.\.768, expected 0\.\.767"),
        ("coded", torch.arange(48, dtype=torch.int32) - 1, r"coded holds -1\.\.46, expected 0\.\.767"),
        ("coded", torch.arange(48, dtype=torch.int32) // 2, "coded names a coefficient twice"),
        ("quantizer__base", torch.full((48,), 97, dtype=torch.int32), r"base holds 97\.\.97, expected 0\.\.96"),
        ("quantizer__shifts", torch.tensor([-1, 3], dtype=torch.int32), r"shifts holds -1\.\.3, expected 0\.\.23"),
        ("quantizer__unit", torch.zeros(1), r"quantizer\.unit is 0\.0, expected more than 0"),
        ("quantizer__unit", torch.full((1,), torch.nan), r"quantizer\.unit is nan"),
        ("quantizer__out_bias", torch.full((48,), 2**24, dtype=torch.int32), "sums of the network can reach 16777216"),
    ],
)
def test_wild_numbers_are_refused_by_name(folder: Path, name: str, tensor: torch.Tensor, message: str) -> None:
    change(folder, **{name: tensor})
    with pytest.raises(WeightsError, match=message):
        weights.load(folder)


def test_values_that_float32_cannot_hold_are_refused(tmp_path: Path) -> None:
    nano = models.build(NanoConfig(32, 16, 4, 48, 9, 2, 16, 2, 8, 2, 32, 2, 1))
    nano.quantizer.codebooks.fill_(127)
    nano.quantizer.drops.fill_(0)
    weights.save(nano, tmp_path / "nano")
    with pytest.raises(WeightsError, match="values can reach 18726912, expected less than 16777216"):
        weights.load(tmp_path / "nano")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refresh": 0}, r"refresh is 0, expected 1\.\.4096"),
        ({"width": True}, "width is True"),
        # Each of these would take gigabytes.
        ({"layers": 4096, "width": 4096, "heads": 1}, "the tensors do not fit the configuration"),
        ({"num_tokens": 4096, "codebook_size": 4096, "token_size": 48}, "the tensors do not fit the configuration"),
    ],
)
def test_configurations_are_compared_before_memory_is_taken(folder: Path, changes: dict, message: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(WeightsError, match=message):
        weights.load(folder)


def test_a_model_of_a_version_before_a_field_has_its_default(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("lap") == 2
    (folder / "config.json").write_text(json.dumps(config))
    assert weights.load(folder).config == NANO


def test_all_installed_codes_that_begin_alike_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TITOKC_HOME", str(tmp_path))
    for name, code in (("a", "00ff" + 60 * "0"), ("b", "00ff" + 60 * "1"), ("c", "01ff" + 60 * "0")):
        folder = places.install_dir(name)
        folder.mkdir(parents=True)
        safetensors.torch.save_file({}, folder / "model.safetensors", {"code": code})
    assert [path.name for path in places.find(b"\x00\xff")] == ["a", "b"]


def test_a_folder_in_the_working_directory_hides_no_installed_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TITOKC_HOME", str(tmp_path / "home"))
    weights.save(models.build(NANO), places.install_dir("nano-mine"))
    (tmp_path / "nano-mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert places.locate("nano-mine").weights == places.install_dir("nano-mine") / "model.safetensors"
    assert places.locate("./nano").weights == folder / "model.safetensors"
