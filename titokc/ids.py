"""What `.tok` files are known by: the magic number, the version, and the append-only table of model ids, as data.

formats/ids.json is the normative copy of the table; `titokc.container` reads and writes the headers that hold an id.
"""

from typing import NamedTuple

MAGIC = b"\xf5tok"
VERSION = 1
CUSTOM_MODEL_ID = 0


class KnownModel(NamedTuple):
    """One row of the table.

    min_tokens, max_tokens: the counts per tile that an encoder makes. nested: the first k tokens are a valid code
    too. image_size: side in pixels of the square that one tile is scaled to.
    """

    id: int
    name: str
    bits_per_index: int
    min_tokens: int
    max_tokens: int
    nested: bool
    image_size: int


KNOWN_MODELS: dict[int, KnownModel] = {
    row.id: row
    for row in (
        KnownModel(1, "nano-1", 12, 32, 128, True, 256),
        KnownModel(2, "titok-l-32", 12, 32, 32, False, 256),
        KnownModel(3, "titok-b-64", 12, 64, 64, False, 256),
        KnownModel(4, "titok-s-128", 12, 128, 128, False, 256),
        KnownModel(5, "titok-bl-64", 13, 64, 64, False, 256),
        KnownModel(6, "titok-bl-128", 13, 128, 128, False, 256),
        KnownModel(7, "titok-sl-256", 13, 256, 256, False, 256),
    )
}
