"""Model directories: what is written, what stays, what is refused without --force."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from titokc import models, weights
from titokc.cli import main
from titokc.models.nano.config import NanoConfig
from titokc.weights import places

NANO = NanoConfig(32, 16, 4, 48, 4, 2, 16, 2, 8, 2, 32, 2, 1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TITOKC_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    weights.save(models.build(NANO), tmp_path / "source")
    return tmp_path / "source"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["models", *map(str, arguments)])


def other(folder: Path) -> str:
    """Makes the model in the folder another one, and gives its fingerprint."""
    tokenizer = models.build(NANO)
    tokenizer.decoder.norm.bias.data += 1
    weights.save(tokenizer, folder, overwrite=True)
    return places.noted(folder / "model.safetensors")["weights"]


def test_readme_and_git_of_a_model_folder_stay(folder: Path, tmp_path: Path) -> None:
    assert run("convert", folder, "m").exit_code == 0
    Path("m/README.md").write_text("notes")
    Path("m/.git").mkdir()
    Path("m/.git/HEAD").write_text("ref")
    new = other(folder)
    refused = run("convert", folder, "m")
    assert (refused.exit_code, refused.output) == (
        1,
        "titokc: m holds a model: --force replaces its config.json and model.safetensors\n",
    )
    assert run("convert", folder, "m", "--force").exit_code == 0
    assert places.noted(Path("m/model.safetensors"))["weights"] == new
    assert (Path("m/README.md").read_text(), Path("m/.git/HEAD").read_text()) == ("notes", "ref")
    assert sorted(path.name for path in Path("m").iterdir()) == [
        ".git",
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_an_empty_folder_may_be_the_current_one(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    result = run("convert", folder, ".")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path().iterdir()) == ["config.json", "model.safetensors"]


def test_install_replaces_with_force_only(folder: Path) -> None:
    assert run("install", folder, "--name", "mine").exit_code == 0
    before = weights.load("mine").info.weights
    other(folder)
    assert run("install", folder, "--name", "mine").exit_code == 1
    assert weights.load("mine").info.weights == before
    assert run("install", folder, "--name", "mine", "--force").exit_code == 0
    assert weights.load("mine").info.weights != before


def test_a_folder_of_other_things_needs_force_and_keeps_them(folder: Path) -> None:
    Path("photos").mkdir()
    Path("photos/cat.jpg").write_bytes(b"cat")
    assert "photos holds other things: --force adds" in run("convert", folder, "photos").output
    assert run("convert", folder, "photos", "--force").exit_code == 0
    assert Path("photos/cat.jpg").read_bytes() == b"cat"


def test_a_damaged_installed_model_is_listed_with_what_is_wrong(folder: Path) -> None:
    run("install", folder, "--name", "mine")
    (Path("home/models/mine/config.json")).write_text("{")
    (line,) = [line for line in run("list").output.splitlines() if line.startswith("mine")]
    assert "installed, unusable: " in line
