"""What a reconstruction costs: the weighted terms of a phase, and the PSNR and SSIM that are reported.

Perceptual terms come from `titokc.train.perceptual`, the adversarial ones from `titokc.train.discriminator`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from titokc.models.interface import Reconstruction
from titokc.train.recipes import Losses


def reconstruction_terms(weights: Losses, made: Reconstruction, images: Tensor) -> dict[str, Tensor]:
    """The weighted pixel and quantiser terms by name, scalars; images [B, 3, S, S] in [0, 1]."""
    terms = {}
    output = made.images.float()
    if weights.l2:
        terms["l2"] = weights.l2 * F.mse_loss(output, images)
    if weights.l1:
        terms["l1"] = weights.l1 * F.l1_loss(output, images)
    if weights.quantizer:
        terms["quantizer"] = weights.quantizer * made.quantizer_loss
    return terms


def psnr(output: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image [B]: [B, 3, H, W] against peak 1, the output clamped to [0, 1]."""
    error = (output.detach().float().clamp(0, 1) - images).square().mean((1, 2, 3))
    return -10 * error.clamp_min(1e-10).log10()


def ssim(output: Tensor, images: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of each image [B]: RGB float32 [B, 3, H, W] in [0, 1], the 11-pixel
    Gaussian window of sigma 1.5, over the positions where the window fits."""
    window = torch.exp(-(torch.arange(-5.0, 6.0, device=images.device) ** 2) / (2 * 1.5**2))
    window = window / window.sum()

    def band(size: int) -> Tensor:
        """[size - 10, size]: the windowed mean along one axis as a matrix, faster than a depthwise convolution."""
        rows = torch.arange(size - 10, device=images.device).repeat_interleave(11)
        matrix = images.new_zeros(size - 10, size)
        matrix[rows, rows + torch.arange(11, device=images.device).repeat(size - 10)] = window.repeat(size - 10)
        return matrix

    vertical, horizontal = band(images.shape[2]), band(images.shape[3]).mT
    x, y = output.detach().float().clamp(0, 1), images
    mean_x, mean_y, xx, yy, xy = (vertical @ z @ horizontal for z in (x, y, x * x, y * y, x * y))
    var_x, var_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (score / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean((1, 2, 3))
