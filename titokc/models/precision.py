"""Float32 arithmetic that no setting around it can change, in which every tokenizer's quantiser runs; fast products;
what lies how in memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from titokc.models.shared import Shared


def convolution_format(device: torch.device) -> torch.memory_format:
    """How a network's weights lie best: NVIDIA's matrix units want channels last."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


@contextmanager
def _whole_products() -> Iterator[None]:
    matmul, cudnn_tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = cudnn_tf32


# torch's settings of products are the whole process's.
_shared = Shared(_whole_products)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 products inside, whatever autocast, TF32 or bf16 settings surround the call, in any number of threads.

    Tokens are the arg-min over thousands of near neighbours: rounding the latents to fewer bits changes some of them.
    Until the last thread leaves, products in others, which do not ask for it, have full precision too.
    """
    with _shared, torch.autocast(device.type, enabled=False):
        yield


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """`F.linear`, and exact GELU after it. In float32 on a CPU, where no gradient is asked for, oneDNN's: on AMD's
    processors twice as fast as MKL's, which is PyTorch's choice, and the same to the bit on any number of threads."""
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    if on_cpu and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
        after, how = ("gelu", "none") if gelu else ("none", "")
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, after, [], how)
    x = F.linear(x, weight, bias)
    return F.gelu(x) if gelu else x
