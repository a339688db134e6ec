"""The released TiTok tokenizers by name: where their weights live, and what is known of them. No torch, no network.

Ids for `.tok` files are in `titokc.container.KNOWN_MODELS`; `titokc.weights.places` finds the files.
"""

from dataclasses import dataclass

from titokc.container import KNOWN_MODELS
from titokc.models.titok.config import SIZES, TiTokConfig

NANO = "nano-1"
MODEL_IDS = {row.name: row.id for row in KNOWN_MODELS.values()}


@dataclass(frozen=True)
class Release:
    """A released tokenizer. repo_id: on the Hugging Face hub. parameters: numbers in the weights, 4 bytes each."""

    repo_id: str
    parameters: int
    config: TiTokConfig


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
