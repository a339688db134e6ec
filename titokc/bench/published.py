"""Figures that others published, under their own protocols: shown beside ours as context, never in one ranking."""

from __future__ import annotations

from typing import NamedTuple


class Data(NamedTuple):
    """What was measured on; all pictures of a set have as many pixels."""

    name: str
    pixels: int


class Published(NamedTuple):
    """bpp in bits per pixel, PSNR in dB; None where the source does not say."""

    codec: str
    data: Data
    bpp: float
    psnr: float | None
    ssim: float | None
    ms_ssim: float | None
    lpips: float | None
    rfid: float | None
    source: str

    @property
    def size_bytes(self) -> float:
        """Of a picture, in the mean."""
        return self.bpp * self.data.pixels / 8


_KODAK = Data("Kodak 768x512", 768 * 512)
_IMAGENET = Data("ImageNet val 256x256", 256 * 256)
_STABLECODEC = "StableCodec repository, results/results.txt"
_DIFFEIC = "DiffEIC repository, indicators/results.xlsx"
_ILLM = "NeuralCompression repository, projects/illm/results.csv"
_COMPRESSAI = "CompressAI repository, results: the lowest quality there"
_TITOK = "TiTok, NeurIPS 2024 rebuttal (arXiv 2406.07550)"

PUBLISHED = (
    Published("TiTok-L-32", _IMAGENET, 0.00586, 15.88, 0.3635, None, None, 2.21, _TITOK),
    Published("TiTok-B-64", _IMAGENET, 0.01172, 17.06, 0.4023, None, None, 1.70, _TITOK),
    Published("TiTok-S-128", _IMAGENET, 0.02344, 17.73, 0.4255, None, None, 1.71, _TITOK),
    # 256 tokens of 10 bits
    Published("MaskGIT-VQGAN", _IMAGENET, 0.03906, 18.14, 0.4386, None, None, 2.28, _TITOK),
    Published("StableCodec", _KODAK, 0.00579, 20.27, None, 0.6434, 0.3097, None, _STABLECODEC),
    Published("StableCodec", _KODAK, 0.01083, 21.31, None, 0.7120, 0.2444, None, _STABLECODEC),
    Published("StableCodec", _KODAK, 0.02026, 22.30, None, 0.7736, 0.1952, None, _STABLECODEC),
    Published("StableCodec", _KODAK, 0.03413, 23.01, None, 0.8122, 0.1664, None, _STABLECODEC),
    Published("DiffEIC", _KODAK, 0.02008, 19.57, None, 0.6485, 0.3185, None, _DIFFEIC),
    Published("RDEIC-5", _KODAK, 0.02377, 22.21, None, 0.7527, 0.2034, None, _DIFFEIC),
    Published("PerCo (SD)", _KODAK, 0.03239, 19.53, None, 0.6740, 0.2965, None, _DIFFEIC),
    Published("VTM, QP 52", _KODAK, 0.02048, 24.02, None, 0.7850, 0.5693, None, _DIFFEIC),
    Published("BPG, q 51", _KODAK, 0.03311, 24.45, None, 0.8116, 0.5503, None, _DIFFEIC),
    Published("MS-ILLM, q 1", _KODAK, 0.04435, 24.73, None, 0.8461, 0.1576, None, _ILLM),
    Published("VTM", _KODAK, 0.0482, 26.14, None, None, None, None, _COMPRESSAI),
    Published("AV1", _KODAK, 0.0557, 25.56, None, None, None, None, _COMPRESSAI),
    Published("BPG", _KODAK, 0.0678, 26.20, None, None, None, None, _COMPRESSAI),
    Published("JPEG", _KODAK, 0.2212, 23.78, None, None, None, None, _COMPRESSAI),
    Published("WebP", _KODAK, 0.2344, 28.33, None, None, None, None, _COMPRESSAI),
)
