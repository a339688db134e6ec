"""The released TiTok layouts on the CPU beside a plain PyTorch forward pass, in turn: pictures a second, agreement.

python bench/titok_speed.py [NAME ...] [--processor] [--repeats N]

`Plain` computes what the authors' code does, in stock modules, eager, float32, at PyTorch's own number of threads; it
stands in for that code, which is not here. Weights are random. Wall time needs idle cores; --processor counts
processor seconds instead. Three minutes on two idle cores.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titokc import engines, imaging, tiling
from titokc.judge.pixels import psnr
from titokc.models.titok.config import TiTokConfig, ViTSize
from titokc.models.titok.releases import RELEASES
from titokc.models.titok.tokenizer import TiTok

BATCH = 8


class PlainViT(nn.Module):
    """Patches [B, 256, D] and latents [B, K, D] -> the same, normed."""

    def __init__(self, size: ViTSize, tokens: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(1, size.width))
        self.positional_embedding = nn.Parameter(torch.zeros(257, size.width))
        self.latent_token_positional_embedding = nn.Parameter(torch.zeros(tokens, size.width))
        self.ln_pre, self.ln_post = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
        self.transformer = nn.ModuleList(PlainBlock(size.width, size.heads) for _ in range(size.layers))

    def through(self, patches: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], 1) + self.positional_embedding
        x = torch.cat([x, latents + self.latent_token_positional_embedding], 1)
        x = self.ln_pre(x).permute(1, 0, 2)
        for block in self.transformer:
            x = block(x)
        x = x.permute(1, 0, 2)
        return self.ln_post(x[:, 1:257]), self.ln_post(x[:, 257:])


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class PlainResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, inputs, eps=1e-6), nn.GroupNorm(32, outputs, eps=1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(outputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return y + (self.nin_shortcut(y) if hasattr(self, "nin_shortcut") else x)


class PlainPixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(256, 512, 3, padding=1)
        self.mid = nn.ModuleList(PlainResidual(512, 512) for _ in range(2))
        self.up = nn.ModuleList()
        for level, (inputs, outputs) in enumerate([(128, 128), (256, 128), (256, 256), (512, 256), (512, 512)]):
            blocks = nn.ModuleList([PlainResidual(inputs, outputs), PlainResidual(outputs, outputs)])
            self.up.append(nn.ModuleDict({"block": blocks}))
            if level:
                self.up[-1]["upsample_conv"] = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm_out = nn.GroupNorm(32, 128, eps=1e-6)
        self.conv_out = nn.Conv2d(128, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.mid:
            x = block(x)
        for level in reversed(self.up):
            for block in level["block"]:
                x = block(x)
            if "upsample_conv" in level:
                x = level["upsample_conv"](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(x)))


class Plain(nn.Module):
    """A legacy TiTok in the released layout: uint8 [B, 256, 256, 3] -> int64 [B, K] -> uint8 again."""

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        encoder, decoder = config.encoder.width, config.decoder.width
        self.latent_tokens = nn.Parameter(torch.zeros(config.num_latent_tokens, encoder))
        self.encoder = PlainViT(config.encoder, config.num_latent_tokens)
        self.encoder.patch_embed = nn.Conv2d(3, encoder, 16, 16)
        self.encoder.conv_out = nn.Conv2d(encoder, config.token_size, 1)
        self.decoder = PlainViT(config.decoder, config.num_latent_tokens)
        self.decoder.decoder_embed = nn.Linear(config.token_size, decoder)
        self.decoder.mask_token = nn.Parameter(torch.zeros(1, 1, decoder))
        self.decoder.ffn = nn.Sequential(nn.Conv2d(decoder, 2 * decoder, 1), nn.Tanh(), nn.Conv2d(2 * decoder, 1024, 1))
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(config.codebook_size, config.token_size)})
        self.pixel_quantize = nn.ModuleDict({"embedding": nn.Embedding(1024, 256)})
        self.pixel_decoder = PlainPixels()

    @torch.no_grad()
    def encode(self, tiles: np.ndarray) -> np.ndarray:
        patches = self.encoder.patch_embed(torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255)
        latents = self.latent_tokens.expand(len(tiles), -1, -1)
        _, latents = self.encoder.through(patches.flatten(2).transpose(1, 2), latents)
        batch, tokens, width = latents.shape
        z = self.encoder.conv_out(latents.reshape(batch, width, tokens, 1)).permute(0, 2, 3, 1).flatten(0, 2)
        z, entries = F.normalize(z, dim=-1), F.normalize(self.quantize["embedding"].weight, dim=-1)
        distances = z.square().sum(1, keepdim=True) + entries.square().sum(1) - 2 * z @ entries.T
        return distances.argmin(1).view(batch, tokens).numpy()

    @torch.no_grad()
    def decode(self, tokens: np.ndarray) -> np.ndarray:
        vectors = F.normalize(self.quantize["embedding"](torch.from_numpy(tokens)), dim=-1)
        masks = self.decoder.mask_token.expand(len(tokens), 256, -1)
        patches, _ = self.decoder.through(masks, self.decoder.decoder_embed(vectors))
        logits = self.decoder.ffn(patches.transpose(1, 2).reshape(len(tokens), -1, 16, 16))
        mixed = torch.einsum("nchw,cd->ndhw", logits.softmax(1), self.pixel_quantize["embedding"].weight)
        images = self.pixel_decoder(mixed).clamp(0, 1) * 255
        return images.permute(0, 2, 3, 1).round().to(torch.uint8).numpy()


def randomise(tokenizer: TiTok) -> None:
    """Weights with which every layer matters and pixels mostly lie in 0..255."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in tokenizer.state_dict().items():
            if "embedding" in name or "token" in name:
                tensor.normal_(0, 0.2)
            elif tensor.ndim > 1:
                tensor.normal_(0, tensor[0].numel() ** -0.5)
            else:
                tensor.normal_(1.0 if name.endswith("weight") else 0.0, 0.05)
        tokenizer.pixel_decoder.conv_out.weight.mul_(0.3)
        tokenizer.pixel_decoder.conv_out.bias.fill_(0.5)


def in_turn(works: list[Callable[[], np.ndarray]], repeats: int, clock: Callable[[], float]) -> list[float]:
    """Median seconds of each."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, taken in zip(works, times, strict=True):
            start = clock()
            work()
            taken.append(clock() - start)
    return [median(taken) for taken in times]


def measure(name: str, tiles: np.ndarray, repeats: int, clock: Callable[[], float]) -> None:
    config = RELEASES[name].config
    tokenizer = TiTok(config).eval()
    randomise(tokenizer)
    plain = Plain(config).eval()
    plain.load_state_dict(tokenizer.state_dict())
    ours, exact = engines.open(tokenizer), engines.open(tokenizer, dtype="float32")
    count = config.num_latent_tokens
    tokens, found = plain.encode(tiles), np.stack(ours.encode(tiles, [count] * len(tiles), 0))
    reference = plain.decode(tokens)
    for label, engine in (("by default", ours), ("float32", exact)):
        pixels = np.stack(engine.decode(tokens, "faithful"))
        gaps = np.abs(pixels.astype(int) - reference)
        near = np.mean([psnr(a, b) for a, b in zip(reference, pixels, strict=True)])
        print(
            f"{name}, decoded {label} against plain: {near:.1f} dB, mean |difference| {gaps.mean():.3f} of 255,"
            f" at most {gaps.max()}"
        )
    print(f"{name}, tokens unlike plain's: {(tokens != found).sum()} of {tokens.size}\n")
    print(f"| {name}, pictures a second | plain | titokc | ratio |\n|---|---|---|---|")
    for size, times in ((1, repeats), (BATCH, max(1, repeats // 3))):
        few, codes = tiles[:size], tokens[:size]
        encoders = [partial(plain.encode, few), partial(ours.encode, few, [count] * size, 0)]
        decoders = [partial(plain.decode, codes), *(partial(e.decode, codes, "faithful") for e in (ours, exact))]
        for works, labels in ((encoders, ["encode"]), (decoders, ["decode", "decode in float32"])):
            base, *rates = (size / seconds for seconds in in_turn(works, times, clock))
            for label, rate in zip(labels, rates, strict=True):
                print(f"| {label}, {size} at a time | {base:.2f} | {rate:.2f} | {rate / base:.2f} |", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["titok-s-128", "titok-l-32"], help="legacy layouts")
    parser.add_argument("--processor", action="store_true", help="processor seconds, for busy machines")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    pictures = [imaging.read(path) for path in sorted((Path(__file__).parent / "samples").glob("*.jpg"))]
    tiles = np.stack([np.asarray(t) for p in pictures for t in tiling.cut(p, (2, 4), 256)])[:BATCH]
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}\n")
    for name in options.names:
        measure(name, tiles, options.repeats, time.process_time if options.processor else time.perf_counter)


if __name__ == "__main__":
    main()
