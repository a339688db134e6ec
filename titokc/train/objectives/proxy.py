"""Stage 1 of TiTok: to predict the codes that MaskGIT's VQGAN gives the same crops (arXiv 2406.07550, section 3.3)."""

from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from titokc.errors import UsageError, WeightsError
from titokc.models.interface import Tokenizer
from titokc.models.precision import convolution_format
from titokc.models.titok.pixel_decoder import MaskGITVQGAN
from titokc.models.titok.tokenizer import TiTok
from titokc.train.checkpoint import fill
from titokc.train.objectives.interface import Objective, Setup, Shown
from titokc.train.validate import validate
from titokc.weights.tensors import fitted, read


@dataclass(frozen=True)
class Proxy:
    """Weights of the terms. codes: cross-entropy on the VQGAN's codes. quantizer: the tokenizer's own terms."""

    codes: float = 1.0
    quantizer: float = 1.0

    def scaled(self, times: int) -> "Proxy":  # noqa: ARG002
        """See `titokc.train.recipes.schema.scaled`: there is no adversary."""
        return self


class ProxyObjective(Objective[Proxy]):
    def __init__(self, settings: Proxy, setup: Setup) -> None:
        super().__init__(settings, setup)
        if setup.proxy is None:
            raise UsageError("the recipe learns the codes of MaskGIT's VQGAN: give its weights with --proxy")
        layout = convolution_format(setup.device)
        self._vqgan = load_vqgan(setup.proxy).to(setup.device).to(memory_format=layout)

    def prepare(self, tokenizer: Tokenizer) -> None:
        """Puts the VQGAN's pixel codebook and decoder into a legacy TiTok, as where stage 2 starts from."""
        legacy, vqgan = _legacy(tokenizer), self._vqgan
        for ours, theirs in ((legacy.pixel_quantize, vqgan.quantize), (legacy.pixel_decoder, vqgan.decoder)):
            fill(ours, theirs.state_dict(), Path("--proxy"))

    def terms(self, tokenizer: Tokenizer, batch: Shown) -> tuple[dict[str, Tensor], None]:
        logits, quantizer_loss = _legacy(tokenizer).proxy_logits(batch.images, batch.keep)
        entropy = F.cross_entropy(logits, self._vqgan.encode(batch.images))
        weights = self.settings
        return {"codes": weights.codes * entropy, "quantizer": weights.quantizer * quantizer_loss}, None

    def validate(self, tokenizer: Tokenizer, squares: Tensor) -> tuple[dict[str, float], Tensor]:
        """By the pictures that the VQGAN's decoder makes of what is predicted; the loss is the mean squared error."""
        return validate(tokenizer, squares, F.mse_loss, self.setup.group)


def _legacy(tokenizer: Tokenizer) -> TiTok:
    if not isinstance(tokenizer, TiTok) or not tokenizer.config.is_legacy:
        raise WeightsError("proxy codes need a legacy TiTok, which predicts them: set model.is_legacy=true")
    return tokenizer


def load_vqgan(path: Path) -> MaskGITVQGAN:
    """The VQGAN in a .safetensors, .bin or .pth file of the released layout, frozen."""
    tensors = read(path)
    if "decoder.norm_out.weight" not in tensors:
        raise WeightsError(f"{path}: not the layout of MaskGIT's VQGAN (it has no decoder.norm_out.weight)")
    vqgan = MaskGITVQGAN(tensors["decoder.norm_out.weight"].shape[0])
    vqgan.load_state_dict(fitted(vqgan.state_dict(), tensors, path))
    return vqgan.eval().requires_grad_(False)
