"""The two hashes of a model: what each covers, bit for bit, and what not; the id that follows from one."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

import titokc
from titokc import models, weights
from titokc.errors import ModelMismatchError, WeightsError
from titokc.ids import KNOWN_MODELS, KnownModel
from titokc.models.interface import Tokenizer
from titokc.models.nano.config import NanoConfig
from titokc.models.titok.config import TiTokConfig, ViTSize
from titokc.models.titok.releases import RELEASES
from titokc.weights import places

NANO = NanoConfig(32, 16, 4, 48, 4, 2, 16, 2, 8, 2, 32, 2, 1)
TITOK = TiTokConfig(ViTSize(64, 1, 1), ViTSize(64, 1, 1), 4, 16, 8, use_l2_norm=False, is_legacy=False, image_size=32)
IDS_JSON = Path(__file__).parents[1] / "formats" / "ids.json"


@pytest.fixture(autouse=True)
def _empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TITOKC_HOME", str(tmp_path / "titokc"))


def counted(config: NanoConfig | TiTokConfig) -> Tokenizer:
    """A tokenizer whose tensors hold 0, 1, 2, ... 100, 0, 1, ..."""
    tokenizer = models.build(config)
    for tensor in tokenizer.state_dict().values():
        tensor.copy_((torch.arange(tensor.numel()) % 101).view(tensor.shape))
    return tokenizer


def by_hand(fields: dict, tensors: dict[str, torch.Tensor]) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":")) + "\n"
    for name, tensor in sorted(tensors.items()):
        kind = {torch.float32: "float32", torch.int8: "int8", torch.int32: "int32"}[tensor.dtype]
        shape = "x".join(map(str, tensor.shape))
        text += f"{name} {kind} {shape} {hashlib.sha256(tensor.numpy().tobytes()).hexdigest()}\n"
    return hashlib.sha256(text.encode()).hexdigest()


def test_nanos_code_is_quantiser_and_coded_coefficients() -> None:
    tokenizer = counted(NANO)
    fields = {"thumb_size": 16, "coefficients": 48, "num_tokens": 4, "codebook_size": 16}
    fields |= {"token_size": 2, "hidden": 8, "refresh": 2}
    names = ["base", "codebooks", "drops", "into", "into_bias", "out", "out_bias", "shifts", "unit"]
    state = tokenizer.state_dict()
    tensors = {name: state[name] for name in ("coded", *(f"quantizer.{name}" for name in names))}
    expected = by_hand({"architecture": "nano", "version": 1, "fields": fields}, tensors)
    assert weights.fingerprints(tokenizer).code.hex() == expected == PINNED["nano"]


def test_titoks_code_is_encoder_latent_tokens_and_quantiser() -> None:
    tokenizer = counted(TITOK)
    fields = {"encoder": {"width": 64, "layers": 1, "heads": 1}, "num_latent_tokens": 4, "codebook_size": 16}
    fields |= {"token_size": 8, "use_l2_norm": False, "is_legacy": False, "fsq_levels": []}
    fields |= {"image_size": 32, "patch_size": 16}
    parts = ("encoder.", "latent_tokens", "quantize.")
    tensors = {name: tensor for name, tensor in tokenizer.state_dict().items() if name.startswith(parts)}
    expected = by_hand({"architecture": "titok", "version": 1, "fields": fields}, tensors)
    assert weights.fingerprints(tokenizer).code.hex() == expected == PINNED["titok"]


# A change of these orphans every file: it needs a new version of the algorithm, and new ids.
PINNED = {
    "nano": "ba05334b3458c20295113b2b95d7e7cd6798aa37b1d0c62792ed00a2b16d0198",
    "titok": "b8ef170ed74f037878a61a588a94ce858cc11bc2891cf0a15c5dd78081dc4fee",
}


@dataclass(frozen=True)
class LaterNano(NanoConfig):
    sharpness: int = 3


@dataclass(frozen=True)
class LaterTiTok(TiTokConfig):
    sharpness: int = 3


@pytest.mark.parametrize(("config", "later"), [(NANO, LaterNano), (TITOK, LaterTiTok)])
def test_a_later_field_with_a_default_changes_no_fingerprint(config: NanoConfig | TiTokConfig, later: type) -> None:
    tokenizer = counted(config)
    before = weights.fingerprints(tokenizer)
    tokenizer.config = later(**{name: getattr(config, name) for name in asdict(config)})
    assert weights.fingerprints(tokenizer) == before


@pytest.mark.parametrize("config", [NANO, TITOK])
def test_a_better_decoder_has_the_same_code(config: NanoConfig | TiTokConfig) -> None:
    tokenizer = counted(config)
    before = weights.fingerprints(tokenizer)
    decoder = next(p for name, p in tokenizer.named_parameters() if name.startswith("decoder."))
    with torch.no_grad():
        decoder.view(-1)[3] = torch.nextafter(decoder.view(-1)[3], torch.tensor(9.0))
    after = weights.fingerprints(tokenizer)
    assert after.code == before.code
    assert after.weights != before.weights


@pytest.mark.parametrize("change", [{"layers": 3}, {"heads": 4}, {"lap": 1}, {"min_tokens": 1}, {"image_size": 64}])
def test_a_decoder_of_another_shape_has_the_same_code(change: dict) -> None:
    code = weights.fingerprints(counted(NANO)).code
    assert weights.fingerprints(counted(replace(NANO, **change))).code == code


@pytest.mark.parametrize("name", ["coded", "quantizer.drops", "quantizer.unit", "quantizer.shifts"])
def test_one_number_of_the_code_changes_both(name: str) -> None:
    tokenizer = counted(NANO)
    before = weights.fingerprints(tokenizer)
    tokenizer.state_dict()[name].view(-1)[0] += 1
    after = weights.fingerprints(tokenizer)
    assert after.code != before.code
    assert after.weights != before.weights


def test_fields_without_a_trace_in_the_tensors_are_in_both() -> None:
    tokenizer = counted(NANO)
    before = weights.fingerprints(tokenizer)
    tokenizer.config = replace(NANO, refresh=3)
    after = weights.fingerprints(tokenizer)
    assert (after.code != before.code, after.weights != before.weights) == (True, True)


def test_the_embedded_model_has_the_id_and_the_code_of_its_row() -> None:
    nano = weights.load("nano")
    row = json.loads(IDS_JSON.read_text())["models"][1]
    assert (nano.info.name, nano.info.id, nano.info.code.hex()) == (row["name"], row["id"], row["code"])
    noted = places.noted(models.EMBEDDED_FILE)
    assert (noted["code"], noted["weights"]) == (row["code"], nano.info.weights.hex())


def test_another_decoder_of_nanos_code_has_its_id_and_its_own_name(tmp_path: Path) -> None:
    nano = weights.load("nano")
    with torch.no_grad():
        next(nano.decoder.parameters()).view(-1)[0] += 1
    weights.save(nano, tmp_path / "better")
    better = weights.load(tmp_path / "better")
    assert (better.info.name, better.info.id) == (str(tmp_path / "better"), 1)


def test_a_decoder_beside_another_code_is_refused_and_both_are_named(tmp_path: Path) -> None:
    weights.save(models.build(NANO), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors, noted = safetensors.torch.load_file(path), places.noted(path)
    tensors["quantizer.drops"] += 1
    safetensors.torch.save_file(tensors, path, {"code": noted["code"]})
    with pytest.raises(WeightsError, match=rf"the code is [0-9a-f]{{64}}, its decoder was made for.*{noted['code']}"):
        weights.load(tmp_path / "model")


def test_the_id_follows_from_the_code_not_from_name_or_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = counted(TITOK)
    code = weights.fingerprints(tokenizer).code.hex()
    monkeypatch.setitem(KNOWN_MODELS, 9, KnownModel(9, "titok-tiny", 4, 4, False, code))
    torch.save(tokenizer.state_dict(), tmp_path / "anything.bin")
    assert weights.load(tmp_path / "anything.bin").info.id == 9


def in_hub_cache(tokenizer: Tokenizer, repo_id: str, home: Path) -> None:
    repository = home / "hub" / f"models--{repo_id.replace('/', '--')}"
    weights.save(tokenizer, repository / "snapshots" / "abc")
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")


def test_a_release_whose_code_is_not_noted_has_its_id_where_it_was_fetched_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = counted(TITOK)
    monkeypatch.setitem(RELEASES, "titok-l-32", RELEASES["titok-l-32"]._replace(config=TITOK))
    in_hub_cache(tokenizer, RELEASES["titok-l-32"].repo_id, tmp_path / "hf")
    assert weights.load("titok-l-32").info.id == 2
    with torch.no_grad():
        tokenizer.latent_tokens[0] += 1
    weights.save(tokenizer, places.install_dir("titok-l-32"))
    installed = weights.load("titok-l-32")
    assert (installed.info.name, installed.info.id) == ("titok-l-32", 0)


def test_a_release_of_another_configuration_is_refused(tmp_path: Path) -> None:
    in_hub_cache(counted(TITOK), RELEASES["titok-b-64"].repo_id, tmp_path / "hf")
    with pytest.raises(ModelMismatchError, match="what is here as titok-b-64 has another configuration"):
        weights.load("titok-b-64")


def test_a_better_decoder_reads_files_that_are_there_already(tmp_path: Path) -> None:
    picture = Image.linear_gradient("L").convert("RGB")
    data = titokc.encode(picture, tokens=32, effort=0)
    nano = weights.load("nano")
    with torch.no_grad():
        nano.decoder.to_thumb.bias += 0.1
    weights.save(nano, tmp_path / "better")
    assert titokc.Codec(tmp_path / "better", device="cpu").decode(data) != titokc.decode(data)
    nano.quantizer.drops[0, 0] += 1
    weights.save(nano, tmp_path / "other")
    with pytest.raises(ModelMismatchError, match=r"nano-1 \(code 05e7\.\.\.\).*other \(code [0-9a-f]{16}\.\.\.\)"):
        titokc.Codec(tmp_path / "other", device="cpu").decode(data)
