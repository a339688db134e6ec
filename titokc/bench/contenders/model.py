"""Our own models as contenders, one for each form and look, through the public API of titokc."""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

from PIL import Image

from titokc.bench.contenders.interface import Contender, Found, Impossible, Point
from titokc.errors import UsageError
from titokc.options import EncodeOptions

if TYPE_CHECKING:
    from titokc.codec import Codec


class Model(Contender):
    """A point is {"tiles": "RxC", "tokens": those of a tile, "effort": 0..9} or, where tiles have unequal numbers of
    tokens, {"tiles": "RxC", "target_size": the budget in bytes}. form, look: see `DecodeOptions`; a payload alone says
    neither its picture's size nor its model, as a BlurHash does not, and is decoded at the model's side. encoding:
    tune, tiles and effort of `EncodeOptions`, where they are not as usual."""

    kind = "model"
    searched = False

    def __init__(self, name: str, codec: Codec, form: str = "tok", look: str = "", **encoding: Any) -> None:
        self.name = name
        self.codec = codec
        self.form, self.look, self.encoding = form, look, encoding
        self.suffix = f".{form}"

    @cached_property
    def version(self) -> str:
        import titokc

        encoding = "".join(f"{name} {value}, " for name, value in self.encoding.items())
        return f"titokc {titokc.__version__}, {encoding}weights {self.codec.info.weights.hex()[:12]}"

    @property
    def files(self) -> str:
        return f"{self.version} {self.form}"

    def encode(self, image: Image.Image, point: Point) -> bytes:
        return self.codec.encode(image, form=self.form, **self.encoding | point)

    def decode(self, data: bytes) -> Image.Image:
        return self.codec.decode(data, form=self.form, look=self.look)

    def best(self, picture: Image.Image, *budgets: int) -> list[Found | Impossible]:
        return [self._chosen(picture, budget) for budget in budgets]

    def _chosen(self, picture: Image.Image, budget: int) -> Found | Impossible:
        """What `Codec.encode(target_size=...)` chooses."""
        options: dict[str, Any] = {"target_size": budget, "form": self.form} | self.encoding
        start = time.perf_counter()
        try:
            encoded = next(self.codec.encode_many([picture], details=True, **options))
        except UsageError as error:
            return Impossible(None, str(error))
        encode_ms, header = 1e3 * (time.perf_counter() - start), encoded.header
        equal = {"tokens": header.tokens_per_tile, "effort": EncodeOptions(**options).search_effort}
        point = {"tiles": f"{header.rows}x{header.columns}"} | ({"target_size": budget} if header.shares else equal)
        return Found(point, encoded.data, None, None, encode_ms)
