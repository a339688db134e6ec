"""Finding, loading, saving and fingerprinting models; whatever does not fit is refused by name."""

import json
import os
import pickle
import socket
from pathlib import Path

import pytest
import safetensors.numpy
import safetensors.torch
import torch

from titokc import weights
from titokc.errors import ModelMismatchError, ModelNotFoundError, OutputError, UsageError, WeightsError
from titokc.models.titok import config as titok_config
from titokc.models.titok import releases as known
from titokc.models.titok.config import TiTokConfig, ViTSize
from titokc.models.titok.tokenizer import TiTok
from titokc.weights import places, tensors

SIZE = ViTSize(64, 1, 1)
CONFIG = TiTokConfig(SIZE, SIZE, 4, 16, 8, use_l2_norm=False, is_legacy=False, image_size=32)
RELEASED = {
    "experiment": {"tokenizer_checkpoint": "tokenizer_titok_l32.bin", "output_dir": "titok_l_32"},
    "model": {
        "vq_model": {
            "codebook_size": 4096,
            "token_size": 12,
            "use_l2_norm": True,
            "commitment_cost": 0.25,
            "vit_enc_model_size": "large",
            "vit_dec_model_size": "large",
            "vit_enc_patch_size": 16,
            "vit_dec_patch_size": 16,
            "num_latent_tokens": 32,
            "finetune_decoder": True,
        },
        "generator": {"model_type": "ViT", "image_seq_len": "${model.vq_model.num_latent_tokens}"},
    },
    "dataset": {"preprocessing": {"crop_size": 256}},
}


@pytest.fixture(autouse=True)
def _empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model of the developer's own is found, and nothing may open a connection."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TITOKC_HOME", str(tmp_path / "titokc"))

    def refuse(*args: object) -> None:
        raise AssertionError(f"connected to {args[-1]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def model() -> TiTok:
    torch.manual_seed(0)
    return TiTok(CONFIG).eval()


@pytest.fixture
def folder(model: TiTok, tmp_path: Path) -> Path:
    weights.save(model, tmp_path / "model")
    return tmp_path / "model"


def released_config(**changes: object) -> dict:
    vq_model = {**RELEASED["model"]["vq_model"], **changes}
    return {**RELEASED, "model": {"vq_model": vq_model}}


def put_in_hub_cache(model: TiTok, repo_id: str, home: Path) -> Path:
    repository = home / "hub" / f"models--{repo_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    weights.save(model, repository / "snapshots" / "abc123")
    return repository / "snapshots" / "abc123"


def test_saved_models_come_back(model: TiTok, folder: Path) -> None:
    loaded = weights.load(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((folder / "config.json").read_text())["architecture"] == "titok"
    assert isinstance(loaded, TiTok)
    assert loaded.config == CONFIG
    assert not loaded.training
    assert (loaded.info.name, loaded.info.id) == (str(folder), 0)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("config", [CONFIG, *(release.config for release in known.RELEASES.values())])
def test_our_config_json_says_it_all(config: TiTokConfig) -> None:
    with tensors.Uninitialised():
        written = TiTok(config).config.to_dict()
    assert TiTokConfig.from_dict(json.loads(json.dumps(written)), {}) == config


@pytest.mark.parametrize("suffix", [".bin", ".pth", ".safetensors"])
def test_the_file_format_does_not_matter(model: TiTok, folder: Path, tmp_path: Path, suffix: str) -> None:
    bare = tmp_path / "elsewhere" / f"weights{suffix}"
    bare.parent.mkdir()
    save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    save(model.state_dict(), bare)
    loaded = weights.load(bare)  # without a config.json
    assert loaded.info.weights == weights.load(folder).info.weights
    assert loaded.config == CONFIG


def test_a_folders_only_weights_file_may_have_any_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "tokenizer_titok_l32.safetensors")
    assert weights.load(folder).config == CONFIG
    (folder / "generator_titok_l32.bin").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match="no model in"):
        weights.load(folder)


def test_a_files_own_json_comes_before_config_json(folder: Path) -> None:
    (folder / "model.json").write_text((folder / "config.json").read_text())
    (folder / "config.json").write_text("{}")
    assert weights.load(folder / "model.safetensors").config == CONFIG


def test_half_precision_weights_are_widened(model: TiTok, tmp_path: Path) -> None:
    torch.save({name: tensor.half() for name, tensor in model.state_dict().items()}, tmp_path / "half.bin")
    loaded = weights.load(tmp_path / "half.bin")
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}


def test_tensors_that_share_memory_are_separated(model: TiTok, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    state["decoder.ln_pre.bias"] = state["decoder.ln_post.bias"]
    torch.save(state, tmp_path / "shared.bin")
    weights.save(weights.load(tmp_path / "shared.bin"), tmp_path / "copy")
    assert weights.load(tmp_path / "copy").info.weights == weights.load(tmp_path / "shared.bin").info.weights


def test_released_configuration_is_understood_as_it_is() -> None:
    assert TiTokConfig.from_dict(RELEASED, {}) == known.RELEASES["titok-l-32"].config
    defaults = released_config(finetune_decoder=True)
    del defaults["model"]["vq_model"]["finetune_decoder"]
    assert TiTokConfig.from_dict(defaults, {}) == known.RELEASES["titok-l-32"].config
    single = released_config(
        vit_enc_model_size="small",
        num_latent_tokens=256,
        codebook_size=8192,
        token_size=64,
        use_l2_norm=False,
        finetune_decoder=False,
        is_legacy=False,
    )
    assert TiTokConfig.from_dict(single, {}) == known.RELEASES["titok-sl-256"].config


def test_a_released_repository_loads_as_it_is(
    model: TiTok, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(titok_config.SIZES, "small", SIZE)
    config = released_config(
        vit_enc_model_size="small",
        vit_dec_model_size="small",
        num_latent_tokens=4,
        codebook_size=16,
        token_size=8,
        use_l2_norm=False,
        finetune_decoder=False,
        is_legacy=False,
    )
    config["dataset"] = {"preprocessing": {"crop_size": 32}}
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "config.json").write_text(json.dumps(config))
    torch.save(model.state_dict(), repository / "pytorch_model.bin")
    assert weights.load(repository).info.weights == weights.load(folder).info.weights


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (released_config(quantize_mode="vae"), "quantize_mode 'vae' has continuous latents"),
        (released_config(finetune_decoder=False), "a stage 1 model, it has no pixel decoder"),
        (released_config(vit_enc_model_size="huge"), "no 'huge'"),
        (released_config(num_latent_tokens="32"), "num_latent_tokens is '32', expected a whole number"),
        (released_config(num_latent_tokens=-1), r"num_latent_tokens is -1, expected 1\.\.4096"),
        (released_config(vit_dec_patch_size=8), "vit_enc_patch_size and vit_dec_patch_size differ"),
        ({}, "no 'model'"),
        ({"model": []}, "not a configuration"),
        ({"architecture": "titok"}, "no 'encoder'"),
        ({"architecture": "transformer"}, "the architecture 'transformer' is not known; there are nano, titok"),
        ({"architecture": "titok", "colour": 1}, "unknown keys colour"),
    ],
)
def test_other_configurations_are_refused(folder: Path, config: dict, message: str) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=message) as caught:
        weights.load(folder)
    assert str(folder / "config.json") in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(WeightsError, match=r"config\.json"):
        weights.load(folder)


def test_missing_extra_and_misshapen_tensors_are_named(model: TiTok, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    for name in ("encoder.ln_pre.bias", "decoder.mask_token"):
        del state[name]
    state["decoder.text_guidance_proj.weight"] = torch.zeros(2)
    state["decoder.ln_post.weight"] = torch.zeros(65)
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        weights.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'model.safetensors'}: the tensors do not fit the configuration: "
        "2 missing (decoder.mask_token, encoder.ln_pre.bias); "
        "1 unexpected (decoder.text_guidance_proj.weight); "
        "1 misshapen (decoder.ln_post.weight is 65, expected 64)"
    )


def test_many_missing_tensors_are_counted_and_the_first_named(folder: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"51 missing \(decoder\.class_embedding, .*, \.\.\.\); 1 unexpected \(a\)"):
        weights.load(folder)


def test_integer_weights_are_refused(model: TiTok, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    state["latent_tokens"] = state["latent_tokens"].to(torch.int8)
    torch.save(state, tmp_path / "weights.bin")
    with pytest.raises(WeightsError, match="latent_tokens holds int8, expected float32"):
        weights.load(tmp_path / "weights.bin")


def test_a_vae_tokenizer_is_refused_by_its_layout(model: TiTok, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    del state["quantize.embedding.weight"]
    torch.save(state, tmp_path / "weights.bin")
    with pytest.raises(WeightsError, match="continuous latents"):
        weights.load(tmp_path / "weights.bin")


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="not the layout of a TiTok tokenizer: no 'latent_tokens'"):
        weights.load(tmp_path / "other.pth")


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("content", [[1, 2], {"model": {"a": torch.zeros(1)}}, {1: torch.zeros(1)}, {"epoch": 3}, None])
def test_pickles_of_anything_but_named_tensors_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.bin")
    with pytest.raises(WeightsError, match="expected a dictionary of tensors"):
        weights.load(tmp_path / "weights.bin")


def test_pickles_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"latent_tokens": Evil()}, tmp_path / "zipped.bin")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("zipped.bin", "plain.pth"):
        with pytest.raises(WeightsError) as caught:
            weights.load(tmp_path / name)
        assert str(caught.value) == (  # nothing of torch's advice to trust it all the same
            f"{tmp_path / name}: not a readable weights file "
            "(it is damaged, or holds other things than tensors, which are never loaded)"
        )
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_damaged_files_are_refused(model: TiTok, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    save(model.state_dict(), path)
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    noise = bytes(torch.randint(256, (2000,), generator=generator, dtype=torch.uint8).tolist())
    contents = [b"", b"\0", b"\xff" * 8, noise, b"PK\x03\x04" + noise, b"\x80\x02" + noise, b"\x89PNG\r\n\x1a\n"]
    contents += [whole[: len(whole) * part // 8] for part in range(1, 8)]
    contents += [whole[:-1], whole + b"\0" if suffix == ".safetensors" else whole[100:]]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="weights"):
            weights.load(path)


def test_damaged_headers_raise_nothing_but_weights_errors(model: TiTok, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    for suffix, save in ((".safetensors", safetensors.torch.save_file), (".bin", torch.save)):
        path = tmp_path / f"weights{suffix}"
        save({"latent_tokens": torch.zeros(4, 64), "b": torch.zeros(3)}, path)
        whole = path.read_bytes()
        for _ in range(150):
            changed = bytearray(whole)
            at, value = (int(torch.randint(high, (1,), generator=generator)) for high in (len(whole), 256))
            changed[at] = value
            path.write_bytes(changed)
            with pytest.raises(WeightsError):
                weights.load(path)


def test_files_of_other_kinds_and_empty_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    with pytest.raises(WeightsError, match=r"not a weights file \(expected \.safetensors, \.bin, \.pth\)"):
        weights.load(tmp_path / "photo.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"no model in .*empty: expected config\.json and model\.safetensors"):
        weights.load(tmp_path / "empty")


def test_a_missing_model_is_named_with_every_place_and_every_way_out(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        weights.load("titok-l-32")
    assert str(caught.value) == (
        f"the model titok-l-32 (2,564 MB) is not on this machine: looked in {tmp_path}/titokc/models and "
        f"{tmp_path}/hf/hub. Get it with `titokc models fetch titok-l-32`, or, if you have it, "
        "`titokc models install PATH --name titok-l-32`, "
        "or do without: the embedded model nano needs no download"
    )


@pytest.mark.parametrize(
    "name",
    ["titok-l-33", "", "../titok", "a/b/c", "titok-l-32/", "/nowhere/model", "a\nb", "a\0b", "~nobody/x", "x" * 5000],
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        weights.load(name)


def test_a_known_name_is_never_taken_for_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.rename(folder.with_name("titok-b-64"))
    monkeypatch.chdir(folder.parent)
    with pytest.raises(ModelNotFoundError, match=r"the folder \./titok-b-64 is \./titok-b-64, not titok-b-64"):
        weights.load("titok-b-64")
    for path in ("./titok-b-64", Path("titok-b-64")):
        loaded = weights.load(path)
        assert (loaded.info.name, loaded.info.id) == (str(folder.parent / "titok-b-64"), 0)


def test_installed_models_are_found_by_name_and_by_fingerprint(model: TiTok, tmp_path: Path) -> None:
    weights.save(model, places.install_dir("mine"))
    loaded = weights.load("mine")
    assert (loaded.info.name, loaded.info.id) == ("mine", 0)
    # By its folder: a folder of the same name in the current one is something else.
    assert weights.find(loaded.info.code[:2]) == [tmp_path / "titokc" / "models" / "mine"]
    assert weights.find(bytes(2) if loaded.info.code[:2] != bytes(2) else b"\1\1") == []
    assert [files.name for files in places.installed()] == ["mine"]


@pytest.mark.parametrize("name", ["nano", "nano-1", "", ".", "..", "a/b", "-x", "a b"])
def test_some_names_cannot_be_installed(name: str) -> None:
    with pytest.raises(UsageError):
        places.install_dir(name)


def test_what_is_installed_as_a_known_model_must_be_able_to_be_it(model: TiTok) -> None:
    weights.save(model, places.install_dir("titok-b-64"))
    with pytest.raises(ModelMismatchError, match="as titok-b-64 has another configuration"):
        weights.load("titok-b-64")


def test_the_hub_cache_is_read_without_the_hubs_library(model: TiTok, tmp_path: Path) -> None:
    snapshot = put_in_hub_cache(model, "someone/their-titok", tmp_path / "hf")
    loaded = weights.load("someone/their-titok")
    assert (loaded.info.name, loaded.info.id) == ("someone/their-titok", 0)
    assert places.locate("someone/their-titok").weights == snapshot / "model.safetensors"


def test_hub_cache_folder_follows_the_hubs_conventions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert places.hub_cache() == tmp_path / "hf" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    assert places.hub_cache() == tmp_path / "cache"
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert places.hub_cache() == tmp_path / "xdg" / "huggingface" / "hub"


def test_a_half_downloaded_snapshot_is_no_model(tmp_path: Path) -> None:
    repository = tmp_path / "hf" / "hub" / "models--yucornetto--tokenizer_titok_s128_imagenet"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    (repository / "snapshots" / "abc123").mkdir(parents=True)
    (repository / "snapshots" / "abc123" / "config.json").write_text("{}")
    with pytest.raises(ModelNotFoundError, match="is not on this machine"):
        weights.load("titok-s-128")


def test_saving_replaces_a_model_directory_and_nothing_else(model: TiTok, folder: Path, tmp_path: Path) -> None:
    with torch.no_grad():
        model.latent_tokens += 1
    weights.save(model, folder, overwrite=True)
    assert weights.load(folder).info.weights == weights.fingerprints(model).weights
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    for taken in (tmp_path / "photos", tmp_path / "photos" / "cat.jpg"):
        with pytest.raises(OutputError, match=r"holds other things|exists and is no folder"):
            weights.save(model, taken)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "photos"]


def test_golden_tokens_of_the_release_are_whole() -> None:
    for name, pictures in known.GOLDEN_TOKENS.items():
        config = known.RELEASES[name].config
        for tokens in pictures.values():
            assert len(tokens) == config.num_latent_tokens
            assert all(0 <= token < config.codebook_size for token in tokens)


NANO = {"image_size": 32, "thumb_size": 16, "coefficients": 48, "num_tokens": 4, "min_tokens": 2, "codebook_size": 16}
NANO |= {"token_size": 2, "hidden": 8, "width": 32, "heads": 2}


@pytest.fixture
def nano_folder(tmp_path: Path) -> Path:
    from titokc.models.nano.config import NanoConfig
    from titokc.models.nano.tokenizer import NanoTokenizer

    nano = NanoTokenizer(NanoConfig(**NANO))
    weights.save(nano, tmp_path / "nano")
    return tmp_path / "nano"


def test_nano_models_are_saved_and_loaded_like_the_others(nano_folder: Path, tmp_path: Path) -> None:
    loaded = weights.load(nano_folder)
    assert (loaded.info.nested, loaded.info.min_tokens, loaded.info.max_tokens) == (True, 2, 4)
    assert json.loads((nano_folder / "config.json").read_text())["architecture"] == "nano"
    weights.save(loaded, tmp_path / "again")
    assert weights.load(tmp_path / "again").info.weights == loaded.info.weights


def test_nano_weights_may_be_stored_in_half_precision(nano_folder: Path) -> None:
    state = safetensors.torch.load_file(nano_folder / "model.safetensors")
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    safetensors.torch.save_file(halves, nano_folder / "model.safetensors")
    loaded = weights.load(nano_folder).state_dict()
    assert all(torch.equal(loaded[name].float(), halves[name].float()) for name in halves)
    assert {tensor.dtype for tensor in loaded.values()} <= {torch.float32, torch.int32, torch.int8}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 10**9}, r"width is 1000000000, expected 1\.\.4096"),
        ({"width": "32"}, r"width is '32', expected 1\.\.4096"),
        ({"colour": 1}, "colour"),
        ({"width": 64}, "the tensors do not fit the configuration"),
        # These leave no trace in the tensors' shapes.
        ({"heads": 3}, "width 32 is no multiple of heads 3"),
        ({"min_tokens": 200}, "min_tokens 200 is more than num_tokens"),
        ({"lap": 5}, "lap 5: expected 0 to 4, half of a patch"),
        ({"lap": -1}, r"lap is -1, expected 0\.\.4096"),
        ({"image_size": 40}, "image_size 40 is no multiple of thumb_size"),
    ],
)
def test_other_nano_configurations_are_refused(nano_folder: Path, changes: dict, message: str) -> None:
    config = json.loads((nano_folder / "config.json").read_text())
    (nano_folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(WeightsError, match=message):
        weights.load(nano_folder)


def test_damaged_weights_are_refused(nano_folder: Path) -> None:
    path = nano_folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"the file was written as [0-9a-f]{64}: damaged"):
        weights.load(nano_folder)


def test_the_embedded_model_is_known_by_any_path(tmp_path: Path) -> None:
    files = places.locate("nano")
    (tmp_path / "copy.safetensors").write_bytes(files.weights.read_bytes())
    assert files.config is not None
    (tmp_path / "copy.json").write_bytes(files.config.read_bytes())
    loaded = weights.load(tmp_path / "copy.safetensors")
    assert (loaded.info.name, loaded.info.id) == ("nano-1", 1)
