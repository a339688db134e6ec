"""The released TiTok tokenizers by name: where their weights live, and what their authors printed. No network.

Ids for `.tok` files are in `titokc.ids.KNOWN_MODELS`; `titokc.weights.places` finds the files.
"""

from typing import TYPE_CHECKING, NamedTuple

from titokc.models import Release
from titokc.models.titok.config import SIZES, TiTokConfig

if TYPE_CHECKING:
    from torch import Tensor

    from titokc.models.interface import Tokenizer

# Squared distance between unit vectors, 0..4. Rounding differs between devices by some 1e-6.
NEAR_TIE = 1e-3


def _legacy(size: str, tokens: int) -> TiTokConfig:
    return TiTokConfig(SIZES[size], SIZES[size], tokens)


def _single_stage(encoder: str, tokens: int) -> TiTokConfig:
    return TiTokConfig(SIZES[encoder], SIZES["large"], tokens, 8192, 64, use_l2_norm=False, is_legacy=False)


RELEASES = {
    "titok-l-32": Release("yucornetto/tokenizer_titok_l32_imagenet", 641_054_735, _legacy("large", 32)),
    "titok-b-64": Release("yucornetto/tokenizer_titok_b64_imagenet", 204_814_095, _legacy("base", 64)),
    "titok-s-128": Release("yucornetto/tokenizer_titok_s128_imagenet", 83_674_639, _legacy("small", 128)),
    "titok-bl-64": Release("yucornetto/tokenizer_titok_bl64_vq8k_imagenet", 390_016_148, _single_stage("base", 64)),
    "titok-bl-128": Release("yucornetto/tokenizer_titok_bl128_vq8k_imagenet", 390_179_988, _single_stage("base", 128)),
    "titok-sl-256": Release("yucornetto/tokenizer_titok_sl256_vq8k_imagenet", 330_260_884, _single_stage("small", 256)),
}

# What the authors' own run printed for their two sample pictures, on CUDA (README and demo of bytedance/1d-tokenizer).
_VAL_10240 = (
    "887 3979 349 720 2809 2743 2101 603 2205 1508 1891 4015 1317 2956 3774 2296 "
    "484 2612 3472 2330 3140 3113 1056 3779 654 2360 1901 2908 2169 953 1326 2598"
)
_VAL_8636 = (
    "1255 2603 982 2222 643 1426 866 4094 296 1422 398 764 3670 1265 3986 759 "
    "1039 3962 2373 2337 1372 4050 4012 3644 2624 3735 1539 1289 2817 2985 2550 2972"
)
GOLDEN_TOKENS = {
    "titok-l-32": {
        "ILSVRC2012_val_00010240.png": tuple(map(int, _VAL_10240.split())),
        "ILSVRC2012_val_00008636.png": tuple(map(int, _VAL_8636.split())),
    }
}


class Mismatch(NamedTuple):
    """One token that is not the published one. margin: by how much the published entry is farther from the latent than
    the nearest one, as a squared distance; up to NEAR_TIE another device may resolve it the other way."""

    position: int
    found: int
    expected: int
    margin: float


def published(tokenizer: "Tokenizer") -> dict[str, tuple[int, ...]]:
    """Tokens by picture, by configuration and not by name: the weights may have been given as a path."""
    release = next((name for name, release in RELEASES.items() if release.config == tokenizer.config), "")
    return GOLDEN_TOKENS.get(release, {})


def mismatches(tokenizer: "Tokenizer", image: "Tensor", expected: tuple[int, ...]) -> list[Mismatch]:
    """RGB [1, 3, S, S] in [0, 1] -> where the tokenizer's tokens for it are not the expected ones."""
    import torch

    from titokc.models.titok.tokenizer import TiTok

    assert isinstance(tokenizer, TiTok)
    with torch.inference_mode():
        distances = tokenizer.distances(image.to(tokenizer.device))[0].cpu()
    return [
        Mismatch(at, index, wanted, float(distances[at, wanted] - distances[at, index]))
        for at, (index, wanted) in enumerate(zip(distances.argmin(1).tolist(), expected, strict=True))
        if index != wanted
    ]
