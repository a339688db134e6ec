"""Pillow reads and writes `.tok` files after `import titokc.pillow_plugin`, as it does with other plugin packages.

    Image.open("photo.tok")                                   # size and mode without a model; pixels when needed
    Image.open("photo.tok").load(look="natural")              # another look than the model's usual one
    image.save("photo.tok", tokens=64, tiles="auto")          # options of titokc.encode; what other formats have
                                                              # (quality, dpi, exif, ...) is ignored

Importing registers; a plain `import titokc` does not, because it leaves Pillow alone. `titokc.codec` does the work.
"""

from dataclasses import fields
from typing import IO, Any

from PIL import Image, ImageFile, UnidentifiedImageError

from titokc.container import MAGIC, MAX_FILE_SIZE, MIME_TYPE, SUFFIX, read_header
from titokc.errors import ContainerError, TitokcError, UsageError
from titokc.options import EncodeOptions

FORMAT = "TOK"
SAVE_OPTIONS = {"model", "device", *(field.name for field in fields(EncodeOptions))} - {"form", "psnr"}
# Options of `titokc.encode` and `encode_many` whose results are no .tok file.
_NO_FILES = ("form", "details", "return_errors")


class DamagedTokError(UnidentifiedImageError, ContainerError):
    """A `.tok` file that cannot be opened, for those who catch Pillow's errors and for those who catch titokc's."""


class TokLoadError(OSError, TitokcError):
    """A `.tok` file whose pixels cannot be made, such as for want of its model."""


class TokImageFile(ImageFile.ImageFile):
    """An RGB image whose pixels are decoded when they are first needed. Raises DamagedTokError, and TokLoadError when
    it is loaded."""

    format = FORMAT
    format_description = "titokc image tokens"

    def _open(self) -> None:
        assert self.fp is not None
        self._data = self.fp.read(MAX_FILE_SIZE + 1)
        try:
            header = read_header(self._data)
        except TitokcError as error:
            raise DamagedTokError(str(error)) from error
        self._size = (header.width, header.height)
        self._mode = "RGB"
        self.info = {"model": header.model, "tokens_per_tile": header.tokens_per_tile}

    def load(self, look: str = "") -> Any:
        """look: as `titokc.DecodeOptions` has it; given, pixels that are there already are made anew."""
        if self._im is None or look:
            from titokc.codec import decode

            try:
                self.im = decode(self._data, look=look).im
            except TitokcError as error:
                raise TokLoadError(str(error)) from error
            if self._exclusive_fp:
                self._close_fp()
            self.fp = None
        return super().load()


def _is_tok(prefix: bytes) -> bool:
    return prefix.startswith(MAGIC)


def _save(image: Image.Image, stream: IO[bytes], _filename: str | bytes) -> None:
    from titokc.codec import encode

    given = image.encoderinfo
    if refused := [name for name in _NO_FILES if name in given]:
        raise UsageError(f"{refused[0]} is no option of saving: titokc.encode has it")
    stream.write(encode(image, **{name: given[name] for name in SAVE_OPTIONS if name in given}))


Image.register_open(FORMAT, TokImageFile, _is_tok)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, SUFFIX)
Image.register_mime(FORMAT, MIME_TYPE)
