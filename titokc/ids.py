"""What `.tok` files are known by: the magic number, the version, and the append-only table of model ids, as data.

formats/ids.json is the normative copy of the table; `titokc.container` reads and writes the headers that hold an id.
"""

from typing import NamedTuple

MAGIC = b"\xf5tok"
VERSION = 1
# Of files whose tiles have unequal numbers of tokens.
SHARES_VERSION = 2
CUSTOM_MODEL_ID = 0


class KnownModel(NamedTuple):
    """One row of the table.

    max_tokens: the most tokens per tile. nested: the first k tokens are a valid code too, down to 1; otherwise files
    have max_tokens. code: SHA-256 fingerprint of the model's code in hex, "" for a release that nobody has noted yet.
    """

    id: int
    name: str
    bits_per_index: int
    max_tokens: int
    nested: bool
    code: str = ""


KNOWN_MODELS: dict[int, KnownModel] = {
    row.id: row
    for row in (
        KnownModel(1, "nano-1", 12, 128, True, "05e706d2cf05110ff6cf7e1ecd921c55c2ed7aaa69b30fc86bd8e8f26208fa55"),
        KnownModel(2, "titok-l-32", 12, 32, False),
        KnownModel(3, "titok-b-64", 12, 64, False),
        KnownModel(4, "titok-s-128", 12, 128, False),
        KnownModel(5, "titok-bl-64", 13, 64, False),
        KnownModel(6, "titok-bl-128", 13, 128, False),
        KnownModel(7, "titok-sl-256", 13, 256, False),
    )
}
