"""The transformer blocks of `titokc.models.titok`, and float32 arithmetic that no setting around it can change."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention, with the parameter names of `torch.nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        xavier = (6 / (4 * width)) ** 0.5
        nn.init.uniform_(self.in_proj_weight, -xavier, xavier)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """[B, L, D] -> [B, L, D]. keep: bool [B, L], positions that may be attended to (None: all)."""
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if keep is None else keep[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Linear, exact GELU, linear; four times as wide in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    """A pre-norm transformer block: [B, L, D] -> [B, L, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), keep)
        return x + self.mlp(self.ln_2(x))


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 products inside, whatever autocast, TF32 or bf16 settings surround the call.

    Tokens are the arg-min over thousands of near neighbours: rounding the latents to fewer bits changes some of them.
    """
    cudnn = torch.backends.cudnn
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.autocast(device.type, enabled=False),
            cudnn.flags(cudnn.enabled, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
