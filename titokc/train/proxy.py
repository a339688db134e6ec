"""The targets of stage 1: the codes that MaskGIT's VQGAN gives the same crops, kept once they have been computed."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

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


class ProxyCodes:
    """Crops -> codes int64 [B, P]. With a cache file, each numbered crop meets the VQGAN once in all epochs and runs.

    cache: a file of 16-bit numbers, `crops` rows of P codes + 1, 0 where nothing is known yet. Processes may share it.
    """

    def __init__(self, vqgan: MaskGITVQGAN, cache: Path | None = None, crops: int = 0, patches: int = 256) -> None:
        self._vqgan = vqgan
        self._known: np.memmap | None = None
        if cache is not None and crops:
            if not cache.exists():
                cache.parent.mkdir(parents=True, exist_ok=True)
                with cache.open("ab") as file:
                    file.truncate(crops * patches * 2)
            self._known = np.memmap(cache, np.uint16, "r+", shape=(crops, patches))

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """RGB [B, 3, S, S] in [0, 1] and the crops' numbers int64 [B] -> codes [B, P] on the images' device."""
        if self._known is None:
            return self._vqgan.encode(images)
        rows = np.asarray(self._known[numbers.numpy()], np.int64)
        missing = np.flatnonzero(rows[:, 0] == 0)
        if len(missing):
            found = self._vqgan.encode(images[torch.from_numpy(missing).to(images.device)])
            rows[missing] = found.cpu().numpy() + 1
            self._known[numbers.numpy()[missing]] = rows[missing]
        return torch.from_numpy(rows - 1).to(images.device)
