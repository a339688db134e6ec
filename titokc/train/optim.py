"""Muon for the weight matrices, AdamW for the rest, and an exponential moving average of the weights.

Muon: K. Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/; the update's size follows AdamW's as in
J. Liu et al., arXiv 2502.16982, section 2.2. The loop in `titokc.train.loop` drives both with one schedule.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from titokc.models.interface import Tokenizer

Names = Mapping[Tensor, str]


class Muon(torch.optim.Optimizer):
    """Momentum whose update is replaced by the nearest orthogonal matrix (Newton-Schulz in bfloat16).

    Takes matrices only. Fused query-key-value matrices [3D, D] are orthogonalised in their three parts. The update
    has a root mean square of 0.2, about AdamW's, whatever the shape.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(momentum, group["momentum"]).bfloat16()
                parts = 3 if weight.shape[0] == 3 * weight.shape[1] else 1
                for part, grad in zip(weight.chunk(parts), update.chunk(parts), strict=True):
                    by_shape.setdefault(tuple(part.shape), []).append((part, grad))
            for (rows, columns), pairs in by_shape.items():
                updates = orthogonalized(torch.stack([grad for _, grad in pairs]))
                scale = group["lr"] * 0.2 * max(rows, columns) ** 0.5
                weights = [weight for weight, _ in pairs]
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, list(updates.to(weights[0].dtype)), alpha=-scale)


def orthogonalized(matrices: Tensor) -> Tensor:
    """[N, R, C] -> bfloat16 [N, R, C] with singular values near 1: five quintic Newton-Schulz steps."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        polynomial.diagonal(dim1=1, dim2=2).add_(3.4445)
        x = polynomial @ x
    return x.mT if tall else x


def build(
    tokenizer: nn.Module, muon: bool, betas: tuple[float, float], weight_decay: float
) -> dict[str, torch.optim.Optimizer]:
    """The optimisers by name: "muon" (if `muon`) and "adamw", which decays weights of layers only.

    Parameters that need no gradient stay out.
    """
    matrices, decayed, plain = [], [], []
    for module in tokenizer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            layer_weight = name.endswith("weight") and parameter.ndim >= 2 and not isinstance(module, nn.Embedding)
            if layer_weight and parameter.ndim == 2 and muon:
                matrices.append(parameter)
            elif layer_weight:
                decayed.append(parameter)
            else:
                plain.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, fused=True)
    optimizers: dict[str, torch.optim.Optimizer] = {"adamw": adamw}
    if matrices:
        optimizers["muon"] = Muon(matrices, lr=0.0, weight_decay=weight_decay)
    return optimizers


class Average:
    """Exponential moving average of a tokenizer's weights: `tokenizer` is a copy of it that holds them.

    The decay is warmed up by (1 + n) / (10 + n); buffers are copied.
    """

    def __init__(self, live: Tokenizer, decay: float) -> None:
        self.tokenizer = copy.deepcopy(live).eval().requires_grad_(False)
        self._decay = decay
        self._pairs = list(zip(self.tokenizer.parameters(), live.parameters(), strict=True))
        self._buffers = list(zip(self.tokenizer.buffers(), live.buffers(), strict=True))

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """After the optimisers' step number `updates` (from 0)."""
        decay = min(self._decay, (1 + updates) / (10 + updates))
        averages, lives = zip(*self._pairs, strict=True)
        torch._foreach_lerp_(averages, [live.detach() for live in lives], 1 - decay)
        for copied, live in self._buffers:
            copied.copy_(live)


def state_tensors(optimizer: torch.optim.Optimizer, names: Names) -> dict[str, Tensor]:
    """The optimiser's tensors under "key/parameter name", for a checkpoint."""
    return {f"{key}/{names[p]}": tensor for p, state in optimizer.state.items() for key, tensor in state.items()}


def load_state_tensors(optimizer: torch.optim.Optimizer, names: Names, tensors: dict[str, Tensor]) -> None:
    """Puts back what `state_tensors` gave; parameters without an entry start afresh."""
    parameters = {name: parameter for parameter, name in names.items()}
    optimizer.state.clear()
    for path, tensor in tensors.items():
        key, _, name = path.partition("/")
        parameter = parameters[name]
        optimizer.state[parameter][key] = tensor.to(parameter.device, copy=True)
