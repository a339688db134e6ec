"""`titokc models`: what it prints, for people and as JSON, and the exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import titokc
from titokc import weights
from titokc.cli import main
from titokc.models.titok import releases as known
from titokc.models.titok.config import TiTokConfig, ViTSize
from titokc.models.titok.tokenizer import TiTok
from titokc.weights import places

SIZE = ViTSize(64, 1, 1)
CONFIG = TiTokConfig(SIZE, SIZE, 4, 16, 8, use_l2_norm=True, is_legacy=False, image_size=32)


@pytest.fixture(autouse=True)
def _empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TITOKC_HOME", str(tmp_path / "titokc"))


@pytest.fixture
def model() -> TiTok:
    torch.manual_seed(0)
    return TiTok(CONFIG).eval()


@pytest.fixture
def folder(model: TiTok, tmp_path: Path) -> Path:
    weights.save(model, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(255 - pixels).save(folder / "b.png")
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["models", *map(str, arguments)])


def publish(monkeypatch: pytest.MonkeyPatch, tokens: dict[str, tuple[int, ...]]) -> None:
    """Makes the tiny model a released one, with published tokens."""
    monkeypatch.setitem(known.RELEASES, "titok-tiny", known.Release("someone/titok-tiny", 1, CONFIG))
    monkeypatch.setitem(known.GOLDEN_TOKENS, "titok-tiny", tokens)


def tokens_of(model: TiTok, picture: Path) -> list[int]:
    pixels = torch.tensor(np.asarray(Image.open(picture))).permute(2, 0, 1)[None] / 255
    return model.encode(pixels)[0].tolist()


def test_list_shows_every_known_model_and_how_to_get_it() -> None:
    listed = json.loads(run("list", "--json").output)
    assert [row["name"] for row in listed] == ["nano-1", *known.RELEASES]
    assert listed[1] == {
        "name": "titok-l-32",
        "id": 2,
        "tokens": [32, 32],
        "bits": 12,
        "payload_bytes": 48,
        "weights_bytes": 2_564_218_940,
        "looks": ["faithful"],
        "where": "titokc models fetch titok-l-32",
        "path": None,
        "repository": "yucornetto/tokenizer_titok_l32_imagenet",
    }
    table = run("list").output.splitlines()
    assert table[0].split() == ["NAME", "TOKENS", "BITS", "PAYLOAD", "WEIGHTS", "LOOKS", "WHERE"]
    assert table[7].split(maxsplit=3)[:3] == ["titok-sl-256", "256", "13"]
    assert table[7].endswith("416 B    1,321 MB  faithful           titokc models fetch titok-sl-256")


def test_list_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['titokc', 'models', 'list']\n"
        "from titokc.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'numpy', 'PIL', 'huggingface_hub'} & set(sys.modules)), file=sys.stderr)"
    )
    root = Path(titokc.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_path_of_a_model_that_is_not_here_exits_with_4() -> None:
    result = run("path", "titok-b-64")
    assert result.exit_code == 4
    assert "titokc models fetch titok-b-64" in result.output


def test_installed_models_are_listed_and_found(model: TiTok, folder: Path, tmp_path: Path) -> None:
    result = run("install", folder, "--name", "mine")
    home = tmp_path / "titokc" / "models" / "mine"
    assert (result.exit_code, result.output) == (0, f"mine: {home}\n")
    assert run("path", "mine").output == f"{home / 'model.safetensors'}\n"
    (row,) = [row for row in json.loads(run("list", "--json").output) if row["name"] == "mine"]
    assert (row["where"], row["id"], row["tokens"], row["bits"]) == ("installed", 0, [4, 4], 4)
    assert weights.load("mine").info.weights == weights.fingerprints(model).weights


def test_install_names_a_model_after_its_folder_or_file(model: TiTok, folder: Path, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "other.bin")
    (tmp_path / "other.json").write_text((folder / "config.json").read_text())
    assert run("install", folder).exit_code == run("install", tmp_path / "other.bin").exit_code == 0
    assert [files.name for files in places.installed()] == ["model", "other"]


def test_install_refuses_a_known_name_for_another_model(folder: Path) -> None:
    result = run("install", folder, "--name", "titok-l-32")
    assert result.exit_code == 4
    assert "titok-l-32 has another configuration" in result.output
    assert list(places.installed()) == []
    assert run("install", folder, "--name", "nano").exit_code == 2


def test_convert_makes_a_model_directory_of_a_pickle(model: TiTok, folder: Path, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "weights.bin")
    (tmp_path / "weights.json").write_text((folder / "config.json").read_text())
    result = run("convert", tmp_path / "weights.bin", tmp_path / "out")
    code, everything = weights.fingerprints(model)
    assert result.output == f"{tmp_path / 'out'}: code {code.hex()}, weights {everything.hex()}\n"
    assert weights.load(tmp_path / "out").info.weights == weights.fingerprints(model).weights


def test_verify_reports_what_was_loaded(model: TiTok, folder: Path) -> None:
    result = run("verify", folder, "--json")
    assert result.exit_code == 0
    assert json.loads(result.output) == {
        "model": str(folder),
        "id": 0,
        "weights": str(folder / "model.safetensors"),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "code_fingerprint": weights.fingerprints(model).code.hex(),
        "weights_fingerprint": weights.fingerprints(model).weights.hex(),
        "golden": [],
    }
    assert "not compared, give --pictures" in run("verify", folder).output


def test_verify_passes_on_the_published_tokens(
    model: TiTok, folder: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, {name: tuple(tokens_of(model, pictures / name)) for name in ("a.png", "b.png")})
    result = run("verify", folder, "--pictures", pictures)
    assert result.exit_code == 0
    assert "4 of 4 as published: a.png" in result.output
    assert "4 of 4 as published: b.png" in result.output


def test_verify_names_wrong_tokens_with_their_margins(
    model: TiTok, folder: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tokens_of(model, pictures / "a.png")
    wrong = (tokens[0] + 1) % 16
    publish(monkeypatch, {"a.png": (wrong, *tokens[1:])})
    result = run("verify", folder, "--pictures", pictures)
    assert result.exit_code == 4
    assert f"token 0: {tokens[0]}, published {wrong}, margin " in result.output
    assert "other tokens than the published ones for a.png" in result.output
    (golden,) = json.loads(run("verify", folder, "--pictures", pictures, "--json").stdout)["golden"]
    (mismatch,) = golden["mismatches"]
    latent = model.latents(torch.tensor(np.asarray(Image.open(pictures / "a.png"))).permute(2, 0, 1)[None] / 255)[0, :1]
    distances = model.quantize.distances(latent)[0]
    assert mismatch["margin"] == pytest.approx((distances[wrong] - distances[tokens[0]]).item(), abs=1e-5)


def test_verify_lets_near_ties_pass(
    model: TiTok, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        model.quantize.embedding.weight[8:] = model.quantize.embedding.weight[:8] + 1e-5
    weights.save(model, tmp_path / "twins")
    twins = tuple(token + 8 if token < 8 else token - 8 for token in tokens_of(model, pictures / "a.png"))
    publish(monkeypatch, {"a.png": twins})
    result = run("verify", tmp_path / "twins", "--pictures", pictures)
    assert result.exit_code == 0
    assert "0 of 4 as published: a.png" in result.output


def test_verify_wants_pictures_of_the_models_size(
    folder: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, {"a.png": (0, 0, 0, 0)})
    Image.new("RGB", (40, 32)).save(pictures / "a.png")
    result = run("verify", folder, "--pictures", pictures)
    assert result.exit_code == 1
    assert "is 40x32, expected 32x32" in result.output
    (pictures / "a.png").write_bytes(b"no picture")
    assert "a.png: not a PNG" in run("verify", folder, "--pictures", pictures).output
    (pictures / "a.png").unlink()
    assert "none of a.png in" in run("verify", folder, "--pictures", pictures).output


def test_verify_says_when_no_tokens_are_published(folder: Path, pictures: Path) -> None:
    result = run("verify", folder, "--pictures", pictures)
    assert result.exit_code == 0
    assert "none are published for this model (titok-l-32 has some)" in result.output


def test_verify_finds_numbers_that_are_not_finite(model: TiTok, tmp_path: Path) -> None:
    with torch.no_grad():
        model.decoder.ln_post.bias[0] = float("nan")
    weights.save(model, tmp_path / "broken")
    result = run("verify", tmp_path / "broken")
    assert result.exit_code == 4
    assert "decoder.ln_post.bias holds numbers that are not finite" in result.output
