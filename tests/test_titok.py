"""TiTok computes what the authors' code computes: pinned tokens and pixels, names and shapes, one numeric at a time.

The pinned values were made with the authors' forward pass on the same weights.
"""

import zlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titokc.errors import UsageError
from titokc.models.precision import linear
from titokc.models.titok.config import TiTokConfig, ViTSize
from titokc.models.titok.pixel_decoder import Doubling, MaskGITVQGAN, PixelDecoder, ResidualBlock
from titokc.models.titok.releases import RELEASES
from titokc.models.titok.tokenizer import TiTok
from titokc.weights.tensors import Uninitialised

SMALL, LARGE = ViTSize(128, 2, 2), ViTSize(64, 2, 1)
LEGACY = TiTokConfig(SMALL, LARGE, 8, 64, image_size=64, pixel_channels=32)
SINGLE = TiTokConfig(SMALL, LARGE, 8, 128, 16, use_l2_norm=False, is_legacy=False, image_size=64)
NESTED = TiTokConfig(SMALL, LARGE, 8, 64, is_legacy=False, image_size=64, min_tokens=2)


def fill(module: nn.Module) -> nn.Module:
    """Pseudo-random weights that depend on names and positions alone, of a size that makes every tensor matter."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            phase = zlib.crc32(name.encode()) % 1000
            steps = torch.arange(tensor.numel(), dtype=torch.float64) * 12.9898 + phase
            noise = (torch.sin(steps) * 43758.5453 % 1 * 2 - 1).reshape(tensor.shape)
            if "embedding" in name or "token" in name:
                noise *= 0.3
            elif tensor.ndim > 1:
                noise *= (6 / tensor[0].numel()) ** 0.5
            else:
                noise *= 0.1
            tensor.copy_(1 + noise if name.endswith("weight") and tensor.ndim == 1 else noise)
    return module.eval()


def pictures() -> Tensor:
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    slopes = ((1, 2), (3, 1), (2, 5))
    return torch.stack([torch.stack([(y * a + x * b + 17 * i) % 101 / 100 for a, b in slopes]) for i in range(2)])


@pytest.fixture(scope="module")
def legacy() -> TiTok:
    return fill(TiTok(LEGACY))


@pytest.fixture(scope="module")
def single() -> TiTok:
    return fill(TiTok(SINGLE))


def test_legacy_model_gives_the_authors_tokens_and_pixels(legacy: TiTok) -> None:
    tokens = legacy.encode(pictures())
    assert tokens.tolist() == [[29, 28, 4, 6, 43, 55, 9, 39], [29, 34, 61, 6, 43, 10, 9, 39]]
    with torch.no_grad():
        pixels = legacy.decode(tokens)
    assert pixels.shape == (2, 3, 64, 64)
    assert pixels.dtype == torch.float32
    assert pixels[1, :, 5, 40].tolist() == pytest.approx([-0.4947, -0.03719, 0.93987], abs=1e-4)
    assert pixels[0, :, 63, 0].tolist() == pytest.approx([-0.02382, 0.13574, -0.06467], abs=1e-4)
    assert (pixels.mean().item(), pixels.std().item()) == pytest.approx((0.40205, 0.94257), abs=1e-4)


def test_single_stage_model_gives_the_authors_tokens_and_pixels(single: TiTok) -> None:
    tokens = single.encode(pictures())
    assert tokens.tolist() == [[33, 124, 46, 89, 14, 33, 104, 104], [33, 46, 46, 89, 106, 104, 60, 104]]
    with torch.no_grad():
        pixels = single.decode(tokens)
    assert pixels[1, :, 5, 40].tolist() == pytest.approx([-4.27653, -2.82172, 0.40891], abs=1e-4)
    assert pixels[0, :, 63, 0].tolist() == pytest.approx([-1.36498, 0.1744, -0.587], abs=1e-4)
    assert (pixels.mean().item(), pixels.std().item()) == pytest.approx((0.04014, 1.95589), abs=1e-4)


def test_maskgit_vqgan_gives_the_authors_codes_and_pixels() -> None:
    vqgan = fill(MaskGITVQGAN(channels=32))
    codes = vqgan.encode(pictures())
    assert codes[0].tolist() == [60, 891, 732, 106, 472, 99, 318, 318, 412, 99, 675, 204, 307, 855, 242, 852]
    assert codes[1].tolist() == [796, 665, 234, 331, 360, 669, 536, 318, 54, 777, 950, 996, 19, 855, 238, 264]
    with torch.no_grad():
        pixels = vqgan.decoder(vqgan.quantize.lookup(codes).transpose(1, 2).unflatten(2, (4, 4)))
    assert pixels[1, :, 20, 33].tolist() == pytest.approx([0.40751, -0.0879, -0.19043], abs=1e-4)


@pytest.mark.parametrize("name", RELEASES)
def test_parameter_counts_of_the_released_models(name: str) -> None:
    with Uninitialised():
        model = TiTok(RELEASES[name].config)
    expected = {
        "titok-l-32": 641_054_735,
        "titok-b-64": 204_814_095,
        "titok-s-128": 83_674_639,
        "titok-bl-64": 390_016_148,
        "titok-bl-128": 390_179_988,
        "titok-sl-256": 330_260_884,
    }
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == expected[name]


def test_pixel_decoder_has_30_478_339_parameters() -> None:
    with Uninitialised():
        assert sum(parameter.numel() for parameter in PixelDecoder().parameters()) == 30_478_339


def block_shapes(width: int) -> dict[str, tuple[int, ...]]:
    return {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
    }


def vit_shapes(part: str, width: int, layers: int, tokens: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        f"{part}.class_embedding": (1, width),
        f"{part}.positional_embedding": (257, width),
        f"{part}.latent_token_positional_embedding": (tokens, width),
    }
    shapes |= {f"{part}.{norm}.{kind}": (width,) for norm in ("ln_pre", "ln_post") for kind in ("weight", "bias")}
    for layer in range(layers):
        shapes |= {f"{part}.transformer.{layer}.{name}": shape for name, shape in block_shapes(width).items()}
    return shapes


def outer_shapes(encoder: int, decoder: int, tokens: int, codes: int, size: int) -> dict[str, tuple[int, ...]]:
    return {
        "latent_tokens": (tokens, encoder),
        "encoder.patch_embed.weight": (encoder, 3, 16, 16),
        "encoder.patch_embed.bias": (encoder,),
        "encoder.conv_out.weight": (size, encoder, 1, 1),
        "encoder.conv_out.bias": (size,),
        "decoder.mask_token": (1, 1, decoder),
        "decoder.decoder_embed.weight": (decoder, size),
        "decoder.decoder_embed.bias": (decoder,),
        "quantize.embedding.weight": (codes, size),
    }


def pixel_decoder_shapes() -> dict[str, tuple[int, ...]]:
    def residual(prefix: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {
            f"{prefix}.norm1.weight": (inputs,),
            f"{prefix}.norm1.bias": (inputs,),
            f"{prefix}.conv1.weight": (outputs, inputs, 3, 3),
            f"{prefix}.norm2.weight": (outputs,),
            f"{prefix}.norm2.bias": (outputs,),
            f"{prefix}.conv2.weight": (outputs, outputs, 3, 3),
        }
        if inputs != outputs:
            shapes[f"{prefix}.nin_shortcut.weight"] = (outputs, outputs, 1, 1)
        return shapes

    shapes: dict[str, tuple[int, ...]] = {
        "pixel_quantize.embedding.weight": (1024, 256),
        "pixel_decoder.conv_in.weight": (512, 256, 3, 3),
        "pixel_decoder.conv_in.bias": (512,),
        "pixel_decoder.norm_out.weight": (128,),
        "pixel_decoder.norm_out.bias": (128,),
        "pixel_decoder.conv_out.weight": (3, 128, 3, 3),
        "pixel_decoder.conv_out.bias": (3,),
    }
    for at in range(2):
        shapes |= residual(f"pixel_decoder.mid.{at}", 512, 512)
    for level, (inputs, outputs) in enumerate([(128, 128), (256, 128), (256, 256), (512, 256), (512, 512)]):
        shapes |= residual(f"pixel_decoder.up.{level}.block.0", inputs, outputs)
        shapes |= residual(f"pixel_decoder.up.{level}.block.1", outputs, outputs)
        if level:
            shapes[f"pixel_decoder.up.{level}.upsample_conv.weight"] = (outputs, outputs, 3, 3)
            shapes[f"pixel_decoder.up.{level}.upsample_conv.bias"] = (outputs,)
    return shapes


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    with Uninitialised():
        return {key: tuple(tensor.shape) for key, tensor in TiTok(RELEASES[name].config).state_dict().items()}


def test_state_dict_of_a_legacy_model_is_the_released_layout() -> None:
    expected = vit_shapes("encoder", 512, 8, 128) | vit_shapes("decoder", 512, 8, 128)
    expected |= outer_shapes(512, 512, 128, 4096, 12) | pixel_decoder_shapes()
    expected |= {"decoder.ffn.0.weight": (1024, 512, 1, 1), "decoder.ffn.0.bias": (1024,)}
    expected |= {"decoder.ffn.2.weight": (1024, 1024, 1, 1), "decoder.ffn.2.bias": (1024,)}
    assert shapes_of("titok-s-128") == expected


def test_state_dict_of_a_single_stage_model_is_the_released_layout() -> None:
    expected = vit_shapes("encoder", 512, 8, 256) | vit_shapes("decoder", 1024, 24, 256)
    expected |= outer_shapes(512, 1024, 256, 8192, 64)
    expected |= {"decoder.ffn.0.weight": (768, 1024, 1, 1), "decoder.ffn.0.bias": (768,)}
    expected |= {"decoder.conv_out.weight": (3, 3, 3, 3), "decoder.conv_out.bias": (3,)}
    assert shapes_of("titok-sl-256") == expected


def test_configuration_is_read_off_the_shapes() -> None:
    for config in (LEGACY, SINGLE, *(release.config for release in RELEASES.values())):
        with Uninitialised():
            state = TiTok(config).state_dict()
        assert TiTokConfig.from_dict(None, {name: tuple(tensor.shape) for name, tensor in state.items()}) == config


def test_blocks_compute_what_torch_multihead_attention_does() -> None:
    from titokc.models.titok.vit import Attention

    ours, reference = fill(Attention(128, 2)), nn.MultiheadAttention(128, 2, batch_first=True)
    reference.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(0))
    hidden = torch.tensor([[False] * 5, [False, False, True, False, True]])
    expected, _ = reference(x, x, x, key_padding_mask=hidden, need_weights=True)
    assert torch.allclose(ours(x, ~hidden), expected, atol=1e-5)


@pytest.mark.parametrize("is_legacy", [True, False])
def test_legacy_models_reshape_the_latents_where_the_others_transpose(is_legacy: bool) -> None:
    model = fill(TiTok(LEGACY if is_legacy else SINGLE))
    encoder = model.encoder
    with torch.no_grad():
        patches = encoder.patch_embed(pictures()).flatten(2).transpose(1, 2)
        outputs = encoder.run(patches, model.latent_tokens.expand(2, -1, -1), slice(1 + 16, None))
        columns = outputs.reshape(2, 128, 8) if is_legacy else outputs.permute(0, 2, 1)
        weight = encoder.conv_out.weight[:, :, 0, 0]
        expected = torch.einsum("tw,bwk->bkt", weight, columns) + encoder.conv_out.bias
        assert torch.allclose(model.latents(pictures()), expected, atol=1e-5)


def test_single_stage_channels_are_patch_row_patch_column_colour(single: TiTok) -> None:
    decoder = fill(TiTok(SINGLE)).decoder
    with torch.no_grad():
        decoder.ffn[0].weight.zero_()
        decoder.ffn[0].bias.copy_(torch.arange(768))
        decoder.conv_out.weight.zero_()
        decoder.conv_out.bias.zero_()
        for colour in range(3):
            decoder.conv_out.weight[colour, colour, 1, 1] = 1
        pixels = decoder(torch.zeros(1, 8, 16))
    for colour, row, column in ((0, 0, 0), (2, 0, 1), (1, 15, 3), (0, 18, 47)):
        assert pixels[0, colour, row, column] == (row % 16 * 16 + column % 16) * 3 + colour


def test_legacy_pixels_come_from_a_softmax_mixture_of_the_pixel_codebook(legacy: TiTok) -> None:
    logits = torch.zeros(1, 16, 1024)
    logits[..., 7], logits[..., 9] = 20.0, 21.0
    entries = legacy.pixel_quantize.embedding.weight
    share = torch.tensor([20.0, 21.0]).softmax(0)
    mixed = (share[0] * entries[7] + share[1] * entries[9])[None, :, None, None].expand(1, 256, 4, 4)
    with torch.no_grad():
        assert torch.allclose(legacy._pixels(logits), legacy.pixel_decoder(mixed), atol=1e-4)


def test_residual_shortcut_is_applied_to_the_output_of_conv2() -> None:
    block = fill(ResidualBlock(32, 64))
    x = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = F.conv2d(
            F.silu(F.group_norm(x, 32, block.norm1.weight, block.norm1.bias, 1e-6)), block.conv1.weight, padding=1
        )
        y = F.conv2d(
            F.silu(F.group_norm(y, 32, block.norm2.weight, block.norm2.bias, 1e-6)), block.conv2.weight, padding=1
        )
        assert torch.allclose(block(x), y + F.conv2d(y, block.nin_shortcut.weight), atol=1e-5)


def test_tokens_do_not_depend_on_autocast_or_the_matmul_precision(legacy: TiTok) -> None:
    expected = legacy.latents(pictures())
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(legacy.latents(pictures()), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(previous)


@pytest.mark.parametrize("gelu", [False, True])
def test_products_are_the_same_to_the_bit_on_any_number_of_threads(gelu: bool) -> None:
    """The sizes of titok-l-32. The sum over inputs is never shared out, only rows and columns."""
    usual = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((1, 289, 1024), (1024, 1024), (1024,)))
    found = []
    try:
        with torch.no_grad():
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                found.append(linear(x, weight, bias, gelu))
            plain = F.linear(x, weight, bias)
    finally:
        torch.set_num_threads(usual)
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert torch.allclose(found[0], F.gelu(plain) if gelu else plain, atol=1e-3)


def test_doubling_is_nearest_upsampling_and_a_convolution() -> None:
    double = fill(Doubling(32))
    x = torch.rand(2, 32, 5, 7)
    with torch.no_grad():
        expected = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), double.weight, double.bias, padding=1)
        assert torch.allclose(double(x), expected, atol=1e-5)


def test_decoding_under_autocast_gives_float32_near_the_float32_result(legacy: TiTok) -> None:
    tokens = torch.arange(16).reshape(2, 8)
    with torch.no_grad():
        exact = legacy.decode(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = legacy.decode(tokens)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).square().mean().sqrt() < 0.05 * exact.std()


def test_encode_refuses_token_counts_the_model_lacks(legacy: TiTok) -> None:
    with pytest.raises(UsageError, match="4 tokens: this model makes 8"):
        legacy.encode(pictures(), 4)
    with pytest.raises(UsageError, match="1 tokens: this model makes 2 to 8"):
        TiTok(NESTED).encode(pictures(), 1)


def test_a_nested_code_is_the_start_of_the_longer_one() -> None:
    model = fill(TiTok(NESTED))
    assert (model.info.nested, model.info.min_tokens, model.info.max_tokens, model.info.bits) == (True, 2, 8, 6)
    assert torch.equal(model.encode(pictures(), 3), model.encode(pictures())[:, :3])


def test_tail_token_drop_shows_the_decoder_what_a_shorter_code_would() -> None:
    model = fill(TiTok(NESTED))
    with torch.no_grad():
        made = model.reconstruct(pictures(), torch.tensor([3, 8]))
        for row, count in enumerate((3, 8)):
            expected = model.decode(made.indices[row : row + 1, :count])
            assert torch.allclose(made.images[row : row + 1], expected, atol=1e-4)
        assert torch.allclose(
            model.reconstruct(pictures(), torch.full((2,), 3)).images, model.decode(made.indices[:, :3]), atol=1e-4
        )


@pytest.mark.parametrize("config", [LEGACY, SINGLE, NESTED], ids=["legacy", "single", "nested"])
def test_training_pass_is_decode_of_encode_and_reaches_every_parameter(config: TiTokConfig) -> None:
    model = fill(TiTok(config)).train()
    made = model.reconstruct(pictures())
    assert torch.equal(made.indices, model.encode(pictures()))
    assert torch.allclose(made.images, model.decode(made.indices), atol=1e-3)
    (made.images.square().mean() + made.quantizer_loss).backward()
    # The pixel codebook of a legacy model is mixed, so it trains too.
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_stage_1_predicts_proxy_codes(legacy: TiTok) -> None:
    logits, loss = legacy.proxy_logits(pictures())
    assert logits.shape == (2, 1024, 16)
    assert F.cross_entropy(logits, torch.zeros(2, 16, dtype=torch.int64)).isfinite()
    assert loss > 0
    with torch.no_grad():
        expected = legacy.decoder(legacy.quantize.lookup(legacy.encode(pictures())))
    assert torch.allclose(logits, expected.transpose(1, 2), atol=1e-4)


def test_vqgan_parts_fit_the_pixel_half_of_a_legacy_model() -> None:
    model, vqgan = TiTok(LEGACY), MaskGITVQGAN(channels=32)
    model.pixel_quantize.load_state_dict(vqgan.quantize.state_dict())
    model.pixel_decoder.load_state_dict(vqgan.decoder.state_dict())


def test_vqgan_has_the_released_layout() -> None:
    with Uninitialised():
        state = {name: tuple(tensor.shape) for name, tensor in MaskGITVQGAN().state_dict().items()}
    assert state["encoder.conv_in.weight"] == (128, 3, 3, 3)
    assert "encoder.conv_in.bias" not in state
    assert state["encoder.down.2.block.0.nin_shortcut.weight"] == (256, 256, 1, 1)
    assert state["encoder.down.4.block.0.nin_shortcut.weight"] == (512, 512, 1, 1)
    assert sum("encoder" in name and "nin_shortcut" in name for name in state) == 2
    assert state["encoder.conv_out.weight"] == (256, 512, 1, 1)
    assert state["encoder.conv_out.bias"] == (256,)
    assert state["decoder.conv_in.weight"] == (512, 256, 3, 3)
    assert state["quantize.embedding.weight"] == (1024, 256)


def test_scalar_quantisation_in_place_of_the_codebook() -> None:
    config = TiTokConfig(
        SMALL, LARGE, 8, 240, 3, use_l2_norm=False, is_legacy=False, image_size=64, fsq_levels=(8, 6, 5)
    )
    model = fill(TiTok(config)).train()
    assert "quantize.embedding.weight" not in model.state_dict()
    made = model.reconstruct(pictures())
    assert made.quantizer_loss == 0
    assert made.indices.max() < 240
    assert torch.allclose(made.images, model.decode(made.indices), atol=1e-4)
    made.images.mean().backward()
    assert model.encoder.conv_out.weight.grad.abs().sum() > 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_gives_the_same_tokens_and_nearly_the_same_pixels(legacy: TiTok) -> None:
    tokens = legacy.encode(pictures())
    with torch.no_grad():
        expected = legacy.decode(tokens)
        model = fill(TiTok(LEGACY)).cuda().to(memory_format=torch.channels_last)
        assert torch.equal(model.encode(pictures().cuda()).cpu(), tokens)
        with torch.autocast("cuda", torch.bfloat16):
            pixels = model.decode(tokens.cuda()).cpu()
    assert (pixels - expected).square().mean().sqrt() < 0.05 * expected.std()
