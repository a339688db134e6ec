"""The targets of stage 1: the codes that MaskGIT's VQGAN gives the same crops."""

from pathlib import Path

from titokc.errors import WeightsError
from titokc.models.interface import Tokenizer
from titokc.models.titok.pixel_decoder import MaskGITVQGAN
from titokc.models.titok.tokenizer import TiTok
from titokc.weights.tensors import check_fit, fitted, read


def load_vqgan(path: Path) -> MaskGITVQGAN:
    """The VQGAN in a .safetensors, .bin or .pth file of the released layout, frozen."""
    tensors = read(path)
    if "decoder.norm_out.weight" not in tensors:
        raise WeightsError(f"{path}: not the layout of MaskGIT's VQGAN (it has no decoder.norm_out.weight)")
    vqgan = MaskGITVQGAN(tensors["decoder.norm_out.weight"].shape[0])
    vqgan.load_state_dict(fitted(vqgan.state_dict(), tensors, path))
    return vqgan.eval().requires_grad_(False)


def give_pixel_decoder(tokenizer: Tokenizer, vqgan: MaskGITVQGAN) -> None:
    """Puts the VQGAN's pixel codebook and decoder into a legacy TiTok, as where stage 2 starts from."""
    if not isinstance(tokenizer, TiTok) or not tokenizer.config.is_legacy:
        raise WeightsError("proxy codes need a legacy TiTok, which predicts them: set model.is_legacy=true")
    for ours, theirs in ((tokenizer.pixel_quantize, vqgan.quantize), (tokenizer.pixel_decoder, vqgan.decoder)):
        check_fit(ours.state_dict(), theirs.state_dict(), Path("--proxy"))
        ours.load_state_dict(theirs.state_dict())
