"""Our own models as contenders, one for each look, through the public API of titokc."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from PIL import Image

from titokc.bench.contenders.interface import Contender, Found, Impossible, Point
from titokc.errors import UsageError

if TYPE_CHECKING:
    from titokc.codec import Codec


class Model(Contender):
    """A point is {"tokens": tokens of a tile, "tiles": "RxC"}. `decoding`: options of `Codec.decode`, as its look."""

    suffix = ".tok"
    kind = "model"
    searched = False

    def __init__(self, name: str, codec: Codec, **decoding: str) -> None:
        self.name = name
        self.codec = codec
        self.decoding = decoding

    @cached_property
    def version(self) -> str:
        import titokc

        return f"titokc {titokc.__version__}, weights {self.codec.info.weights.hex()[:12]}"

    def encode(self, image: Image.Image, point: Point) -> bytes:
        return self.codec.encode(image, **point)

    def decode(self, data: bytes) -> Image.Image:
        return self.codec.decode(data, **self.decoding)

    def best(self, picture: Image.Image, budget: int) -> Found | Impossible:
        """What `Codec.encode(target_size=...)` chooses; the grid and the tokens are the same at any effort."""
        from titokc.container import read_header

        try:
            data = self.codec.encode(picture, target_size=budget, effort=0)
        except UsageError as error:
            return Impossible(None, str(error))
        header = read_header(data)
        point = {"tokens": header.tokens_per_tile, "tiles": f"{header.rows}x{header.columns}"}
        return Found(point, None, "bicubic", None)
