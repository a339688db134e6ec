"""Pillow reads and writes `.tok` files after `import titokc.pillow_plugin`, as it does with other plugin packages.

    Image.open("photo.tok")                                   # size and mode without a model; pixels when needed
    image.save("photo.tok", tokens=64, tiles="auto")          # options of Codec.encode_many, and model, device

Importing registers; a plain `import titokc` does not, because it leaves Pillow alone. `titokc.codec` does the work.
"""

from typing import IO, Any

from PIL import Image, ImageFile

from titokc.container import MAGIC, MAX_FILE_SIZE, MIME_TYPE, SUFFIX, read_header

FORMAT = "TOK"


class TokImageFile(ImageFile.ImageFile):
    """An RGB image whose pixels are decoded when they are first needed. Raises `titokc.ContainerError` when damaged."""

    format = FORMAT
    format_description = "titokc image tokens"

    def _open(self) -> None:
        assert self.fp is not None
        self._data = self.fp.read(MAX_FILE_SIZE + 1)
        header = read_header(self._data)
        self._size = (header.width, header.height)
        self._mode = "RGB"
        self.info = {"model": header.model, "tokens_per_tile": header.tokens_per_tile}

    def load(self) -> Any:
        if self._im is None:
            from titokc.codec import decode

            self.im = decode(self._data).im
        return super().load()


def _is_tok(prefix: bytes) -> bool:
    return prefix.startswith(MAGIC)


def _save(image: Image.Image, stream: IO[bytes], _filename: str | bytes) -> None:
    from titokc.codec import encode

    stream.write(encode(image, **image.encoderinfo))


Image.register_open(FORMAT, TokImageFile, _is_tok)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, SUFFIX)
Image.register_mime(FORMAT, MIME_TYPE)
