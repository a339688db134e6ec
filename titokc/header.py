"""What the header of a `.tok` file says, and which ones the format can hold; `titokc.container` has the bytes.

Tiles may have unequal numbers of tokens (formats/tok-v2.md): a tile of share 0 has the most, every 4 more halve them.
"""

from dataclasses import dataclass

from titokc.errors import UsageError
from titokc.ids import CUSTOM_MODEL_ID, KNOWN_MODELS, SHARES_VERSION, VERSION, KnownModel
from titokc.payload import check_index_bits, payload_size

FINGERPRINT_SIZE = 2
MAX_SIDE = 65_536
MAX_GRID = 256
MAX_TOKENS_PER_TILE = 256
# Of each share: floor(65536 * 2 ** (-share / 4)).
FACTORS = (65536, 55108, 46340, 38967, 32768, 27554, 23170, 19483, 16384, 13777, 11585, 9741, 8192, 6888, 5792, 4870)


@dataclass(frozen=True)
class Header:
    """Everything a `.tok` file says besides its indices.

    width, height: the original picture's, 1..65536 pixels. rows, columns: the tile grid, 1..256 each, never more
    than pixels. tokens_per_tile: 1..256, the most that a tile has. bits_per_index: 1..16, the table's for a known
    model. model_id: 0 (custom) or a key of `KNOWN_MODELS`. fingerprint: the first FINGERPRINT_SIZE bytes of the
    model's code fingerprint. nested: whether the first k tokens are a valid code too; None means the table's for a
    known model and False for a custom one. shares: empty where all tiles have tokens_per_tile; else one byte a tile,
    row by row, of 0..15, some 0 and some not (`possible_counts` has what they give).
    """

    width: int
    height: int
    rows: int
    columns: int
    tokens_per_tile: int
    bits_per_index: int
    model_id: int
    fingerprint: bytes
    nested: bool | None = None
    shares: bytes = b""

    def __post_init__(self) -> None:
        if self.nested is None:
            known = KNOWN_MODELS.get(self.model_id)
            object.__setattr__(self, "nested", known is not None and known.nested)

    @property
    def tiles(self) -> int:
        return self.rows * self.columns

    @property
    def model(self) -> str:
        """The known model's name, or "custom"."""
        known = KNOWN_MODELS.get(self.model_id)
        return known.name if known else "custom"

    @property
    def version(self) -> int:
        """Of the format."""
        return SHARES_VERSION if self.shares else VERSION

    @property
    def counts(self) -> tuple[int, ...]:
        """The tokens of each tile, tiles row by row."""
        possible = possible_counts(self.tokens_per_tile)
        return tuple(possible[share] for share in self.shares or bytes(self.tiles))

    @property
    def indices(self) -> int:
        """How many tokens all tiles have."""
        possible = possible_counts(self.tokens_per_tile)
        shares = self.shares or bytes(self.tiles)
        return sum(count * shares.count(share) for share, count in enumerate(possible))

    @property
    def payload_bytes(self) -> int:
        return payload_size(self.indices, self.bits_per_index)


def possible_counts(tokens: int) -> list[int]:
    """The tokens of a tile of each share where the most are `tokens`; with one more, each has none or one more."""
    return [max(1, tokens * factor >> 16) for factor in FACTORS]


def fewest_tokens(known: KnownModel) -> int:
    """A nested model's file may have been truncated to a single token; the others have one length."""
    return 1 if known.nested else known.max_tokens


def _check_range(name: str, value: int, largest: int) -> None:
    if not 1 <= value <= largest:
        raise UsageError(f"{name} is {value}, expected 1..{largest}")


def check_writable(header: Header) -> None:
    """UsageError for a header that the format cannot hold."""
    _check_range("width", header.width, MAX_SIDE)
    _check_range("height", header.height, MAX_SIDE)
    _check_range("rows", header.rows, min(MAX_GRID, header.height))
    _check_range("columns", header.columns, min(MAX_GRID, header.width))
    _check_range("tokens_per_tile", header.tokens_per_tile, MAX_TOKENS_PER_TILE)
    check_index_bits(header.bits_per_index)
    if len(header.fingerprint) != FINGERPRINT_SIZE:
        raise UsageError(f"fingerprint of {len(header.fingerprint)} bytes, expected the first {FINGERPRINT_SIZE}")
    if header.shares:
        _check_shares(header)
    if header.model_id == CUSTOM_MODEL_ID:
        return
    known = KNOWN_MODELS.get(header.model_id)
    if known is None:
        raise UsageError(f"model id {header.model_id} is not in the table, expected 0..{max(KNOWN_MODELS)}")
    if (header.bits_per_index, header.nested) != (known.bits_per_index, known.nested):
        raise UsageError(
            f"{known.name} has {known.bits_per_index} bits per index and nested {known.nested}; "
            f"the header says {header.bits_per_index} and {header.nested}"
        )
    if not fewest_tokens(known) <= header.tokens_per_tile <= known.max_tokens:
        raise UsageError(
            f"{header.tokens_per_tile} tokens per tile, "
            f"expected {fewest_tokens(known)}..{known.max_tokens} for {known.name}"
        )


def _check_shares(header: Header) -> None:
    found, largest = len(header.shares), max(header.shares)
    if found != header.tiles or largest >= len(FACTORS):
        raise UsageError(
            f"{found} shares up to {largest}, expected {header.tiles} of 0..{len(FACTORS) - 1}, one for each tile"
        )
    if min(header.shares) or not largest:
        raise UsageError(f"shares of {min(header.shares)}..{largest}, expected some that are 0 and some that are not")
    if not header.nested:
        raise UsageError(f"shares for {header.model}, whose codes are not nested: all its tiles have as many tokens")
