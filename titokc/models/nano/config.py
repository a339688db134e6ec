"""What defines a nano apart from its weights. Without torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from titokc.errors import WeightsError
from titokc.models.info import FAITHFUL, ModelInfo

# Of the algorithm of `titokc.models.nano.code`, tables and arithmetic included: what the same indices and tensors mean
# never changes within one version. And the fields that tokens depend on.
CODE_VERSION = 1
CODE_FIELDS = ("thumb_size", "coefficients", "num_tokens", "codebook_size", "token_size", "hidden", "refresh")
_LARGEST_FIELD = 4096


@dataclass(frozen=True)
class NanoConfig:
    """image_size: side of the pictures. thumb_size: side of what the ViT sees. coefficients: how many of the
    thumbnail's DCT can be coded. token_size: how many one token refines. hidden, refresh: of the network that chooses
    them. num_tokens, min_tokens: the longest and the shortest code. width, heads, layers: of the ViT. lap: how many
    pixels of the thumbnail what a patch adds reaches into its neighbours. natural: channels of the natural look's
    generator, 0 without one."""

    architecture: ClassVar[str] = "nano"

    image_size: int = 256
    thumb_size: int = 64
    patch_size: int = 8
    coefficients: int = 2048
    num_tokens: int = 128
    min_tokens: int = 4
    codebook_size: int = 4096
    token_size: int = 8
    hidden: int = 256
    refresh: int = 4
    width: int = 256
    heads: int = 4
    layers: int = 10
    lap: int = 2
    natural: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that do not go together."""
        for name, value in asdict(self).items():
            least = int(name not in {"lap", "natural"})
            if type(value) is not int or not least <= value <= _LARGEST_FIELD:
                raise ValueError(f"{name} is {value!r}, expected {least}..{_LARGEST_FIELD}")
        for whole, part in (("width", "heads"), ("thumb_size", "patch_size"), ("image_size", "thumb_size")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(f"{whole} {getattr(self, whole)} is no multiple of {part} {getattr(self, part)}")
        if not 0 <= self.lap <= self.patch_size // 2:
            raise ValueError(f"lap {self.lap}: expected 0 to {self.patch_size // 2}, half of a patch")
        if self.natural % 4 or (self.natural and self.image_size % 8):
            raise ValueError(f"natural {self.natural}: expected a multiple of 4, and sides that are one of 8")
        if self.min_tokens > self.num_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is more than num_tokens {self.num_tokens}")
        if not self.token_size <= self.coefficients <= 3 * self.thumb_size**2:
            raise ValueError(f"{self.coefficients} coefficients: expected token_size .. 3 * thumb_size^2")

    @property
    def info(self) -> ModelInfo:
        looks = (FAITHFUL, "natural") if self.natural else (FAITHFUL,)
        counts = self.min_tokens, self.num_tokens
        return ModelInfo(self.codebook_size, *counts, nested=True, side=self.image_size, looks=looks)

    @property
    def patches(self) -> int:
        return (self.thumb_size // self.patch_size) ** 2

    @property
    def code_fields(self) -> dict[str, int]:
        """What tokens depend on, besides the tensors of the quantiser and the choice of coefficients."""
        return {name: getattr(self, name) for name in CODE_FIELDS}

    def to_dict(self) -> dict[str, Any]:
        return {"architecture": self.architecture, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]) -> "NanoConfig":  # noqa: ARG003
        """See `titokc.models.interface.Config`; what a config.json of an older version does not say has its default."""
        try:
            return cls(**{name: value for name, value in (data or {}).items() if name != "architecture"})
        except (TypeError, ValueError) as error:
            raise WeightsError(f"not a configuration of a nano tokenizer: {error}") from error
