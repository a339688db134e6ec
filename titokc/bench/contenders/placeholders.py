"""ThumbHash and BlurHash: strings that stand for a picture while it loads."""

from __future__ import annotations

from importlib import metadata

from PIL import Image

from titokc.bench.contenders.interface import Contender, Found, Impossible, Point, measured


class Placeholder(Contender):
    """A string that stands for a picture while it loads: a handful of settings, all of which are tried."""

    points: tuple[Point, ...]

    def best(self, picture: Image.Image, *budgets: int) -> list[Found | Impossible]:
        files = [(self.encode(picture, point), point) for point in self.points]
        made = [(len(data), measured(self, picture, point, data)) for data, point in files]
        smallest = Impossible(min(size for size, _ in made))

        def best(budget: int) -> Found | Impossible:
            fitting = (found for size, found in made if size <= budget)
            return max(fitting, key=lambda found: found.psnr or 0, default=smallest)

        return list(map(best, budgets))


class ThumbHash(Placeholder):
    """ThumbHash of the picture reduced to 100 pixels, as its documentation asks; about 25 bytes, no settings.

    It holds the aspect ratio, but no size."""

    name = "thumbhash"
    suffix = ".thumbhash"
    package = "fast_thumbhash"
    points = ({},)

    @property
    def version(self) -> str:
        return f"fast-thumbhash {metadata.version('fast-thumbhash')}"

    def encode(self, image: Image.Image, point: Point) -> bytes:  # noqa: ARG002 - there is nothing to set
        from fast_thumbhash import rgba_to_thumb_hash

        small = image.convert("RGBA")
        small.thumbnail((100, 100), Image.Resampling.LANCZOS)
        return bytes(rgba_to_thumb_hash(*small.size, small.tobytes()))

    def decode(self, data: bytes) -> Image.Image:
        from fast_thumbhash import thumb_hash_to_rgba

        width, height, pixels = thumb_hash_to_rgba(data)
        return Image.frombytes("RGBA", (width, height), bytes(pixels)).convert("RGB")


class BlurHash(Placeholder):
    """BlurHash, with every number of components from 1x1 to 9x9, as the ASCII text that it is defined as.

    Encoded from 64 pixels, far beyond its nine cosines, and decoded at 64 pixels.
    """

    name = "blurhash"
    suffix = ".blurhash"
    package = "blurhash"
    points = tuple({"x": x, "y": y} for x in range(1, 10) for y in range(1, 10))

    @property
    def version(self) -> str:
        return f"blurhash-python {metadata.version('blurhash-python')}"

    def encode(self, image: Image.Image, point: Point) -> bytes:
        import blurhash

        small = image.copy()  # blurhash closes what it is given
        small.thumbnail((64, 64), Image.Resampling.BOX)
        return blurhash.encode(small, point["x"], point["y"]).encode("ascii")

    def decode(self, data: bytes) -> Image.Image:
        import blurhash

        return blurhash.decode(data.decode("ascii"), 64, 64)
