"""What defines a TiTok apart from its weights, read from our config.json, the released one, or the weights' shapes.

Without torch: `titokc.models.titok.tokenizer` builds the model from it.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from titokc.errors import WeightsError
from titokc.models.info import ModelInfo

HEAD_WIDTH = 64


@dataclass(frozen=True)
class ViTSize:
    """A transformer: width D, number of blocks, attention heads."""

    width: int
    layers: int
    heads: int


SIZES = {"small": ViTSize(512, 8, 8), "base": ViTSize(768, 12, 12), "large": ViTSize(1024, 24, 16)}


@dataclass(frozen=True)
class TiTokConfig:
    """A TiTok tokenizer (arXiv 2406.07550). The defaults that can be defaults are the released models'.

    encoder, decoder: the two transformers. num_latent_tokens: K. codebook_size, token_size: V entries of T numbers.
    use_l2_norm: entries and latents are compared as unit vectors.
    is_legacy: the two-stage models, whose decoder predicts proxy codes that MaskGIT's pixel decoder turns into RGB
        (and whose latents are reshaped where one would transpose); False: pixels straight from the ViT.
    min_tokens: the shortest code of a model trained with tail token drop, whose every prefix of min_tokens or more is
        a code too; 0: one fixed length.
    fsq_levels: finite scalar quantisation in place of a codebook, the levels of each of the T dimensions; (): VQ.
    pixel_channels: base width of the legacy pixel decoder.
    """

    architecture: ClassVar[str] = "titok"

    encoder: ViTSize
    decoder: ViTSize
    num_latent_tokens: int
    codebook_size: int = 4096
    token_size: int = 12
    use_l2_norm: bool = True
    is_legacy: bool = True
    min_tokens: int = 0
    fsq_levels: tuple[int, ...] = ()
    image_size: int = 256
    patch_size: int = 16
    pixel_channels: int = 128

    def __post_init__(self) -> None:
        """ValueError for what no model can be, or no sane one: the numbers may come from a stranger's file."""
        for vit in (self.encoder, self.decoder):
            for name in ("width", "layers", "heads"):
                _check_range(name, getattr(vit, name), 16_384 if name == "width" else 256)
            if vit.width % vit.heads:
                raise ValueError(f"width {vit.width} is not a multiple of {vit.heads} heads")
        _check_range("num_latent_tokens", self.num_latent_tokens, 4096)
        _check_range("codebook_size", self.codebook_size, 1 << 20, least=2)
        _check_range("token_size", self.token_size, 4096)
        _check_range("patch_size", self.patch_size, 256)
        _check_range("image_size", self.image_size, 4096)
        _check_range("pixel_channels", self.pixel_channels, 1024)
        _check_range("min_tokens", self.min_tokens, self.num_latent_tokens - 1, least=0)
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.is_legacy and (self.patch_size != 16 or self.pixel_channels % 32):
            raise ValueError("the pixel decoder needs patch_size 16 and pixel_channels in multiples of 32")
        if self.fsq_levels:
            for level in self.fsq_levels:
                _check_range("fsq_levels", level, 4096, least=2)
            if (len(self.fsq_levels), math.prod(self.fsq_levels)) != (self.token_size, self.codebook_size):
                raise ValueError(
                    f"fsq_levels {self.fsq_levels} need token_size {len(self.fsq_levels)} "
                    f"and codebook_size {math.prod(self.fsq_levels)}"
                )

    @property
    def patches(self) -> int:
        """P, on a square grid."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def info(self) -> ModelInfo:
        counts = self.min_tokens or self.num_latent_tokens, self.num_latent_tokens
        return ModelInfo(self.codebook_size, *counts, nested=self.min_tokens > 0, side=self.image_size)

    def to_dict(self) -> dict[str, Any]:
        return {"architecture": self.architecture, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]) -> "TiTokConfig":
        """See `titokc.models.interface.Config`: from a config.json of ours or of a released repository, or, without
        one, from the shapes alone."""
        if data is None:
            return cls._from_shapes(shapes)
        try:
            if data.get("architecture") != cls.architecture:
                return cls._from_released(data)
            known = {field.name for field in fields(cls)}
            unknown = set(data) - known - {"architecture"}
            if unknown:
                raise ValueError(f"unknown keys {', '.join(sorted(unknown))}")
            values = {name: data[name] for name in known & set(data)}
            values |= {name: ViTSize(**data[name]) for name in ("encoder", "decoder")}
            return cls(**values | {"fsq_levels": tuple(data.get("fsq_levels", ()))})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            detail = f"no {error}" if isinstance(error, KeyError) else error
            raise WeightsError(f"not a configuration of a TiTok tokenizer: {detail}") from error

    @classmethod
    def _from_released(cls, data: Mapping[str, Any]) -> "TiTokConfig":
        model = data["model"]["vq_model"]
        if model.get("quantize_mode", "vq") != "vq":
            raise ValueError(f"quantize_mode {model['quantize_mode']!r} has continuous latents, which are no tokens")
        legacy, pixel_decoder = model.get("is_legacy", True), model.get("finetune_decoder", True)
        if legacy != pixel_decoder:
            what = "a stage 1 model, it has no pixel decoder" if legacy else "no such model was released"
            raise ValueError(f"is_legacy {legacy} with finetune_decoder {pixel_decoder} ({what})")
        if model["vit_enc_patch_size"] != model["vit_dec_patch_size"]:
            raise ValueError("vit_enc_patch_size and vit_dec_patch_size differ")
        return cls(
            encoder=SIZES[model["vit_enc_model_size"]],
            decoder=SIZES[model["vit_dec_model_size"]],
            num_latent_tokens=model["num_latent_tokens"],
            codebook_size=model["codebook_size"],
            token_size=model["token_size"],
            use_l2_norm=model["use_l2_norm"],
            is_legacy=legacy,
            image_size=data["dataset"]["preprocessing"]["crop_size"],
            patch_size=model["vit_enc_patch_size"],
        )

    @classmethod
    def _from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> "TiTokConfig":
        """The configuration that weights of these shapes imply, where no config.json says it. Raises WeightsError.

        Two things leave no trace in the shapes and are taken from the released models: heads are 64 wide, and the
        legacy models are those with an L2-normalised codebook.
        """
        if "quantize.embedding.weight" not in shapes and "encoder.conv_out.weight" in shapes:
            raise WeightsError(
                "no quantize.embedding.weight: a tokenizer with continuous latents, "
                "or one with scalar quantisation, which needs its config.json"
            )
        try:
            legacy = "decoder.ffn.2.weight" in shapes
            tokens, _ = shapes["latent_tokens"]
            codebook_size, token_size = shapes["quantize.embedding.weight"]
            _, _, patch_size, _ = shapes["encoder.patch_embed.weight"]
            patches = shapes["encoder.positional_embedding"][0] - 1
            return cls(
                encoder=_vit_size(shapes, "encoder"),
                decoder=_vit_size(shapes, "decoder"),
                num_latent_tokens=tokens,
                codebook_size=codebook_size,
                token_size=token_size,
                use_l2_norm=legacy,
                is_legacy=legacy,
                image_size=math.isqrt(patches) * patch_size,
                patch_size=patch_size,
                pixel_channels=shapes["pixel_decoder.norm_out.weight"][0] if legacy else 128,
            )
        except (KeyError, ValueError, IndexError) as error:
            detail = f"no {error}" if isinstance(error, KeyError) else error
            raise WeightsError(f"not the layout of a TiTok tokenizer: {detail}") from error


def _vit_size(shapes: Mapping[str, tuple[int, ...]], part: str) -> ViTSize:
    _, width = shapes[f"{part}.class_embedding"]
    prefix = f"{part}.transformer."
    layers = {name[len(prefix) :].split(".", 1)[0] for name in shapes if name.startswith(prefix)}
    return ViTSize(width, len(layers), max(1, width // HEAD_WIDTH))


def _check_range(name: str, value: Any, most: int, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, expected a whole number")
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}, expected {least}..{most}")
