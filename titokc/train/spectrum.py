"""A loss that puts the right amount of texture at each frequency where photographs have it: the local spectrum.

It does not ask for the same texture: only the energies of 8x8 windows are compared, and their logarithms, so that a
smooth sky counts as much as a busy wood, and a pattern of one frequency is wrong wherever the photograph has none.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titokc.models.nano.transform import dct_matrix

# Windows of 8 pixels, every 4; the energies of so many neighbours are averaged, at the full scale and at the half.
_WINDOW = 8
_STRIDE = 4
_NEIGHBOURS = (4, 3)
_COLOURS = ((0.299, 0.587, 0.114), (0.5, 0.0, -0.5), (0.25, -0.5, 0.25))
_WEIGHTS = (1.0, 0.3, 0.3)
# What is below 1.5 of 255 is not seen.
_FLOOR = (1.5 / 255) ** 2


class LocalSpectrum(nn.Module):
    """RGB pictures [B, 3, H, W] in [0, 1], sides at least 48, output and images -> a scalar, 0 for equal energies.

    The mean of |ln((e + floor) / (e' + floor))| over windows and frequencies, of luma and two colours, at two scales.
    """

    def __init__(self) -> None:
        super().__init__()
        window = torch.sin(math.pi * (torch.arange(_WINDOW) + 0.5) / _WINDOW)
        waves = torch.from_numpy(dct_matrix(_WINDOW, _WINDOW)) * window / window.square().mean().sqrt()
        kernels = torch.einsum("ai,bj->abij", waves, waves).reshape(_WINDOW**2, 1, _WINDOW, _WINDOW)[1:]
        self.register_buffer("kernels", kernels, persistent=False)
        self.register_buffer("colours", torch.tensor(_COLOURS), persistent=False)
        self.register_buffer("weights", torch.tensor(_WEIGHTS)[:, None, None, None], persistent=False)

    kernels: Tensor
    colours: Tensor
    weights: Tensor

    def forward(self, output: Tensor, images: Tensor) -> Tensor:
        with torch.autocast(output.device.type, enabled=False):
            with torch.no_grad():
                wanted = self._energies(images.float())
            found = self._energies(output.float())
            errors = [((a + _FLOOR) / (b + _FLOOR)).log().abs() for a, b in zip(found, wanted, strict=True)]
            means = [(self.weights * error).mean() / self.weights.mean() for error in errors]
            return torch.stack(means).mean()

    def _energies(self, images: Tensor) -> list[Tensor]:
        """Of each scale, [B, 3, 63, h, w]."""
        x = torch.einsum("dc,bchw->bdhw", self.colours, images)
        found = []
        for scale, neighbours in enumerate(_NEIGHBOURS):
            if scale:
                x = F.avg_pool2d(x, 2)
            detail = x - F.avg_pool2d(x, 9, 1, 4, count_include_pad=False)
            values = F.conv2d(detail.flatten(0, 1)[:, None], self.kernels, stride=_STRIDE)
            found.append(F.avg_pool2d(values.square(), neighbours, 2).unflatten(0, x.shape[:2]))
        return found
