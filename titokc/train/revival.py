"""A learned codebook that stays in use while it trains."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from titokc.models.quantizers import Quantized, VectorQuantizer


class CodebookRevival:
    """Gives entries that have fallen out of use a second life at latents of the current batch.

    Attach it to a VectorQuantizer and call `step()` after each optimiser step. An entry is dead once `patience` x V
    tokens went by without choosing it, which under uniform use happens with probability e^-patience. The idea is
    CVQ-VAE's (arXiv 2307.15139), with a count in place of its running average, so that the rule means the same at any
    batch size. Under torch.distributed uses are summed over the processes and all get the same new entries, from the
    first one's latents. An entry that does not train is left alone.
    """

    def __init__(self, quantizer: VectorQuantizer, patience: float = 20.0) -> None:
        self.quantizer = quantizer
        self.patience = patience
        self.idle = torch.zeros(quantizer.embedding.num_embeddings, dtype=torch.int64)
        self.tokens = 0
        self._seen: list[tuple[Tensor, Tensor]] = []
        quantizer.register_forward_hook(self._observe)

    def _observe(self, quantizer: nn.Module, inputs: tuple, output: Quantized) -> None:
        if quantizer.training and torch.is_grad_enabled() and self.quantizer.embedding.weight.requires_grad:
            latents, keep = inputs[0].detach().float(), (inputs[1] if len(inputs) > 1 else None)
            kept = slice(None) if keep is None else keep
            self._seen.append((latents[kept].reshape(-1, latents.shape[-1]), output.indices[kept].flatten()))

    @torch.no_grad()
    def step(self) -> int:
        """Counts the uses since the last call, replaces the dead entries, and says how many there were."""
        if not self._seen:
            return 0
        latents, indices = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        codebook = self.quantizer.embedding.weight
        uses = torch.bincount(indices, minlength=len(codebook))
        distributed = dist.is_available() and dist.is_initialized()
        if distributed:
            dist.all_reduce(uses)
        uses = uses.cpu()
        total = int(uses.sum())
        self.tokens += total
        self.idle = torch.where(uses > 0, 0, self.idle + total)
        dead = (self.idle > self.patience * len(codebook)).nonzero().flatten()
        if len(dead):
            # Seeded by the run's own progress: a resumed run draws what the uninterrupted one would have drawn.
            generator = torch.Generator().manual_seed(self.tokens)
            draws = torch.randint(len(latents), (len(dead),), generator=generator).to(latents.device)
            entries = latents[draws]
            if self.quantizer.l2_norm:
                entries = F.normalize(entries, dim=-1)
            if distributed:
                dist.broadcast(entries, src=0)
            codebook[dead.to(codebook.device)] = entries.to(codebook.dtype)
            self.idle[dead] = 0
        return len(dead)

    def state_dict(self) -> dict[str, Tensor]:
        """What an exact resume needs."""
        return {"idle": self.idle, "tokens": torch.tensor(self.tokens)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.idle, self.tokens = state["idle"].clone(), int(state["tokens"])
        self._seen.clear()
