"""nano's decoder as ONNX graphs, for other languages and the browser: formats/onnx.md explains what is written.

A graph has no weights of its own: its initializers lie in the model's .safetensors file beside it. One in 8 bits is
cast and multiplied by its scale in the graph, which a runtime does once, when it loads it.

    indices -> (formats/nano-code.md, by the caller) -> coefficients -> decoder.onnx -> picture, features
    picture, features, noise (by the caller) -> natural.onnx -> picture             gradient.onnx: for the search
"""

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from titokc.models.nano.code_numpy import EVIDENCE, STEPS, tensors_of
from titokc.models.nano.config import CODE_VERSION
from titokc.models.nano.natural import FINE_NOISE, NATURAL, NOISE
from titokc.models.nano.tokenizer import NanoTokenizer

OPSET = 18
_ONNX_TYPES = {"float32": "FLOAT", "int32": "INT32", "int8": "INT8"}


class _Port(NamedTuple):
    """An input or output. shape: "N" is any number of tiles, `tokens` of each may differ. range: least and most."""

    name: str
    type: str
    shape: tuple[str | int, ...]
    range: tuple[float, float] | None = None

    def example(self) -> Tensor:
        shape = [2 if size == "N" else int(size) for size in self.shape]
        return torch.ones(shape, dtype=getattr(torch, self.type))


class _Graph(nn.Module):
    """A function of a tokenizer, with the tokenizer's weights."""

    def __init__(self, tokenizer: NanoTokenizer, function: Callable[..., Any]) -> None:
        super().__init__()
        self.tokenizer, self._function = tokenizer, function

    def forward(self, *inputs: Tensor) -> Any:
        return self._function(*inputs)


def export(tokenizer: NanoTokenizer, weights: Path, stored: Mapping[str, dict[str, Any]], search: bool) -> None:
    """See `titokc.models.interface.Tokenizer.export_onnx`. Raises ModuleNotFoundError where a package is missing."""
    config, info, side = tokenizer.config, tokenizer.info, tokenizer.info.side
    coefficients = _Port("coefficients", "float32", ("N", config.coefficients))
    tokens = _Port("tokens", "int32", ("N",), (1, config.num_tokens))
    picture = _Port("picture", "float32", ("N", 3, side, side), (0, 1))
    features = _Port("features", "float32", ("N", config.patches, config.width))
    graphs: dict[str, tuple[nn.Module, list[_Port], list[_Port]]] = {
        "decoder": (_Graph(tokenizer, tokenizer.seen), [coefficients, tokens], [picture, features])
    }
    if NATURAL in info.looks:
        most = 3**0.5
        noise = _Port("noise", "float32", ("N", NOISE, side // 4, side // 4), (-most, most))
        fine = _Port("fine_noise", "float32", ("N", FINE_NOISE, side // 2, side // 2), (-most, most))
        made = _Port("natural", "float32", picture.shape)
        inputs = [picture, features, tokens, noise, fine]
        graphs["natural"] = (_Graph(tokenizer, tokenizer.textured), inputs, [made])
    if search:
        inputs = [coefficients, tokens, picture]
        outputs = [_Port("error", "float32", ("N",)), _Port("gradient", "float32", coefficients.shape)]
        graphs["gradient"] = (_gradient(tokenizer, inputs), inputs, outputs)
    for name, (module, inputs, outputs) in graphs.items():
        model = _exported(module, inputs, outputs, tokenizer, weights.name, stored)
        weights.with_name(f"{name}.onnx").write_bytes(model)
    described = {
        "format": "titokc-onnx",
        "version": 1,
        "model": info.name,
        "id": info.id,
        "code": info.code.hex(),
        "weights": info.weights.hex(),
        "side": side,
        "bits": info.bits,
        "looks": info.looks,
        "graphs": {
            f"{name}.onnx": {"inputs": [p._asdict() for p in inputs], "outputs": [p._asdict() for p in outputs]}
            for name, (_, inputs, outputs) in graphs.items()
        },
        "quantizer": {
            "architecture": config.architecture,
            "version": CODE_VERSION,
            **config.code_fields,
            "step": STEPS.astype(int).tolist(),
            "evidence": EVIDENCE.astype(int).tolist(),
            "file": weights.name,
            "tensors": {name.removeprefix("quantizer."): stored[name] for name in tensors_of(config)},
        },
    }
    weights.with_name("model.json").write_text(json.dumps(described, indent=1) + "\n", "utf-8")


def _gradient(tokenizer: NanoTokenizer, inputs: list[_Port]) -> nn.Module:
    """Coefficients, tokens, pictures -> mean squared errors [N] of what is decoded, and their gradients [N, C].

    Traced before the export, which refuses `autograd.grad`."""

    def judged(coefficients: Tensor, tokens: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
        errors, gradient = tokenizer.judged(coefficients, tokens, picture)
        return errors, gradient()

    examples = [port.example() for port in inputs]
    return make_fx(judged, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*examples)


def _exported(
    module: nn.Module,
    inputs: list[_Port],
    outputs: list[_Port],
    tokenizer: NanoTokenizer,
    file: str,
    stored: Mapping[str, dict[str, Any]],
) -> bytes:
    """The graph, whose weights lie in `file` as `stored` says."""
    from onnx import TensorProto, helper
    from onnxscript.optimizer import optimize_ir

    names = {tensor.data_ptr(): name for name, tensor in tokenizer.state_dict().items()}
    dynamic: Any = tuple({0: torch.export.Dim("N", max=4096)} for _ in inputs)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            tuple(port.example() for port in inputs),
            input_names=[port.name for port in inputs],
            output_names=[port.name for port in outputs],
            dynamic_shapes=(dynamic,) if isinstance(module, _Graph) else dynamic,
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    graph = program.model.graph

    def weight_of(value: Any) -> str | None:
        tensor = getattr(value and value.const_value, "raw", None)
        return names.get(tensor.data_ptr()) if isinstance(tensor, Tensor) else None

    # What follows from constants alone is worked out now, but for what has weights in it.
    optimize_ir(
        program.model,
        input_size_limit=1 << 20,
        output_size_limit=1 << 20,
        should_fold=lambda node: False if any(map(weight_of, node.inputs)) else None,
    )
    weights = {name: found for name, value in graph.initializers.items() if (found := weight_of(value))}
    model = program.model_proto
    constants = [tensor for tensor in model.graph.initializer if tensor.name not in weights]
    del model.graph.initializer[:], model.metadata_props[:], model.graph.value_info[:]
    model.graph.initializer.extend(constants)
    casts = []
    for name, weight in weights.items():
        place = stored[weight]
        quantised = "scale" in place
        parts = {f"{name}.int8": place, f"{name}.scale": place["scale"]} if quantised else {name: place}
        for part, at in parts.items():
            tensor = model.graph.initializer.add(name=part, dims=at["shape"], data_location=TensorProto.EXTERNAL)
            tensor.data_type = getattr(TensorProto, _ONNX_TYPES[at["type"]])
            for key, value in (("location", file), ("offset", at["offset"]), ("length", at["bytes"])):
                tensor.external_data.add(key=key, value=str(value))
        if quantised:
            casts.append(helper.make_node("Cast", [f"{name}.int8"], [f"{name}.float"], to=TensorProto.FLOAT))
            casts.append(helper.make_node("Mul", [f"{name}.float", f"{name}.scale"], [name]))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for node in model.graph.node:
        del node.metadata_props[:]
    return model.SerializeToString()
