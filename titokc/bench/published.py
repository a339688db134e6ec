"""Figures that others published, under their own protocols: shown beside ours as context, never in one ranking."""

from __future__ import annotations

import csv
from importlib import resources
from typing import NamedTuple


class Published(NamedTuple):
    """A line of published.csv. data: what was measured on, pictures of so many pixels each. bpp in bits per pixel, PSNR
    in dB; None where the source does not say."""

    codec: str
    data: str
    pixels: float
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
        return self.bpp * self.pixels / 8


def published() -> list[Published]:
    text = resources.files("titokc.bench").joinpath("published.csv").read_text(encoding="utf-8")
    _, *lines = csv.reader(text.splitlines())
    return [
        Published._make((codec, data, *(float(figure) if figure else None for figure in figures), source))
        for codec, data, *figures, source in lines
    ]
