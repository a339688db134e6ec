"""Float32 arithmetic that no setting around it can change; every tokenizer's quantiser runs in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
