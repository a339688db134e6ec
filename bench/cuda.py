"""All that needs an NVIDIA GPU, in less than eight minutes: the tests marked cuda, then speed and memory.

python bench/cuda.py [-o bench/results/cuda.json]   needs PyTorch 2.4 and what titokc itself needs, installed or not
python bench/cuda.py --dry                          the same script on the CPU, with small sizes: tries it

Pictures a second of encoding and decoding and of a training step of every recipe. What is measured runs in processes of
its own, each with a share of the time that is left; a cell that fails, or is not reached, says why.
"""

import argparse
import importlib.util
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

BATCHES = (1, 8, 64)
# The parts of the benchmark, and how they share the time.
PARTS = {"nano": 3, "titok-s-128": 2, "titok-b-64": 2, "titok-l-32": 3, "training": 4}
# Seconds: most of one cell, compiling included, and what is timed of it.
LIMITS = {"eager": 15, "engine": 15, "graph": 15, "compiled": 45}
TIMED = 0.4
TESTS = ("tests/test_cuda.py", "tests/test_titok.py", "tests/test_codec.py")

Row = dict[str, Any]


class TooSlowError(Exception):
    """A cell has had its time."""


# ---- one part, in a process of its own


def cells(name: str, seconds: float, dry: bool) -> Iterator[Row]:
    """Speed of one model. Modes: "eager", tensors on the device; "engine", arrays in and out, with transfers; "graph",
    all of it one CUDA graph; "compiled", that with blocks by torch.compile with fixed shapes."""
    import torch

    from titokc import engines
    from titokc.options import DEFAULT_EFFORT

    device = torch.device("cpu" if dry else "cuda")
    stop = time.monotonic() + seconds
    model = tokenizer(name, device, dry)
    info = model.info
    works = [("encode", "float32"), ("decode", "bfloat16"), ("decode", "float32")]
    if "natural" in info.looks:
        works += [("decode natural", "bfloat16"), ("decode natural", "float32")]
    if model.searches:
        works.append((f"encode, effort {DEFAULT_EFFORT}", "float32"))

    def on_device(work: str, dtype: str, batch: int) -> Callable[[], object]:
        images = torch.rand(batch, 3, info.side, info.side, device=device).to(memory_format=torch.channels_last)
        tokens = torch.randint(info.codebook_size, (batch, info.max_tokens), device=device)
        effort, look = DEFAULT_EFFORT if "effort" in work else 0, "natural" if "natural" in work else info.looks[0]

        def run() -> object:
            with torch.inference_mode():
                if work.startswith("encode"):
                    return model.encode(images, None, effort)
                with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
                    return model.decode(tokens, look)

        return run

    def in_arrays(work: str, dtype: str, batch: int) -> Callable[[], object]:
        engine = engines.open(model, batch_size=batch, dtype=dtype)
        tiles = torch.randint(256, (batch, info.side, info.side, 3), dtype=torch.uint8).numpy()
        tokens = torch.randint(info.codebook_size, (batch, info.max_tokens)).numpy()
        if work.startswith("encode"):
            counts = [info.max_tokens] * batch
            return lambda: engine.encode(tiles, counts, DEFAULT_EFFORT if "effort" in work else 0)
        return lambda: engine.decode(tokens, "natural" if "natural" in work else info.looks[0])

    for mode, limit in LIMITS.items():
        if mode == "compiled":
            compile_parts(model)
        for batch in reversed(BATCHES[:2] if dry else BATCHES):
            for work, dtype in works:
                row: Row = {"model": name, "work": work, "dtype": dtype, "mode": mode, "batch": batch}
                left = stop - time.monotonic()

                def measure(work: str = work, dtype: str = dtype, batch: int = batch, mode: str = mode) -> Row:
                    run = (in_arrays if mode == "engine" else on_device)(work, dtype, batch)
                    run = graphed(run) if mode in {"graph", "compiled"} and not dry else run
                    return timed(run, batch, mode == "engine")

                yield attempt(min(limit, left), row, measure)


def tokenizer(name: str, device: Any, dry: bool) -> Any:
    """nano as it is embedded; the others with random weights."""
    from titokc import models, weights
    from titokc.models.nano.config import NanoConfig
    from titokc.models.precision import convolution_format
    from titokc.models.titok.config import TiTokConfig, ViTSize
    from titokc.models.titok.releases import RELEASES

    tiny: Any = (
        TiTokConfig(ViTSize(64, 2, 2), ViTSize(64, 2, 2), 16, image_size=64, pixel_channels=32),
        NanoConfig(64, 16, 8, 96, 8, 2, 32, 4, hidden=8, refresh=2, width=16, heads=2, layers=1, natural=16),
    )
    if name == "nano" and not dry:
        model = weights.load("nano")
    else:
        model = models.build(tiny[name == "nano"] if dry else RELEASES[name].config)
    return model.to(device).to(memory_format=convolution_format(device)).eval()


def compile_parts(model: Any) -> None:
    """What nano's tokens depend on is left as it is: its arithmetic has to be exact."""
    import torch

    from titokc.models.nano import faithful, natural
    from titokc.models.titok import pixel_decoder, vit

    torch._dynamo.config.cache_size_limit = 64
    for module in model.modules():
        if isinstance(module, faithful._Block | natural.Generator | pixel_decoder.PixelDecoder | vit.Block):
            module.compile(dynamic=False)


def graphed(run: Callable[[], object]) -> Callable[[], object]:
    import torch

    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def timed(run: Callable[[], object], batch: int, by_the_clock: bool) -> Row:
    """Median pictures a second, by events of the device or, where the host works too, by its clock; peak memory."""
    import torch

    cuda = torch.cuda.is_available()
    wait = torch.cuda.synchronize if cuda else lambda: None
    for _ in range(3):
        began = time.perf_counter()
        run()
        wait()
        once = time.perf_counter() - began
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    repeats = max(3, min(100, int(TIMED / once)))
    times = []
    if by_the_clock or not cuda:
        for _ in range(repeats):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
    else:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        events[0].record()
        for event in events[1:]:
            run()
            event.record()
        wait()
        times = [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(events)]
    return {"pictures_per_s": round(batch / median(times), 1)} | peak()


def peak() -> Row:
    import torch

    return {"peak_mib": round(torch.cuda.max_memory_allocated() / 2**20)} if torch.cuda.is_available() else {}


def attempt(seconds: float, row: Row, work: Callable[[], Row]) -> Row:
    """The row with what the work finds, or with what went wrong; work that takes longer is ended."""

    def ring(*_: object) -> None:
        raise TooSlowError(f"took more than {seconds:.0f} s")

    if seconds < 1:
        return row | {"error": "not reached in time"}
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return row | work()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this cell's result
        return row | {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def training(seconds: float, dry: bool) -> Iterator[Row]:
    """What `titokc train --dry-run` measures of every recipe, scaled for a GPU: steps, with their optimisers, and the
    feed. TiTok in micro-batches of 64, without what needs other packages (LPIPS, ConvNeXt); EfficientNet-Lite0 has
    random weights, as its package may be missing."""
    from titokc.judge.lite0 import EfficientNetLite0
    from titokc.train.data import ImageSet, find
    from titokc.train.recipes import NAMES

    EfficientNetLite0.pretrained = EfficientNetLite0  # type: ignore[assignment, method-assign]
    stop = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as scratch:
        images = ImageSet(find(ROOT / "bench" / "samples").training, 288, Path(scratch))
        for name in NAMES:
            rows = steps_of(name, images, dry, Path(scratch))
            while True:
                row = attempt(min(40, stop - time.monotonic()), {"recipe": name}, lambda rows=rows: next(rows, {}))
                if len(row) == 1:
                    break
                yield row
                if "error" in row:
                    break


def steps_of(name: str, images: Any, dry: bool, scratch: Path) -> Iterator[Row]:
    import torch
    from safetensors.torch import save_file

    from titokc import weights
    from titokc.engines.torch import find_dtype
    from titokc.models.precision import convolution_format
    from titokc.models.titok.pixel_decoder import MaskGITVQGAN
    from titokc.train import objectives, recipes
    from titokc.train.distributed import Group
    from titokc.train.estimate import measure
    from titokc.train.loop import Trainer
    from titokc.train.recipes import schema
    from titokc.train.start import build

    device, titok = torch.device("cpu" if dry else "cuda"), name.startswith("titok")
    settings = ["micro_batch=64"] if titok else []
    if name.endswith(("single", "stage2")):
        settings += ["phases.0.objective.lpips=0", "phases.0.objective.convnext=0"]
    if dry:
        settings = [*settings[1:], "micro_batch=2", *(["model.pixel_channels=32"] if titok else ["model.layers=1"])]
        for part in ("encoder", "decoder") if titok else ():
            settings += [f"model.{part}.width=32", f"model.{part}.layers=1", f"model.{part}.heads=2"]
    recipe = recipes.named(name)
    recipe = schema.override(schema.scaled(recipe, 1 if dry else recipe.on_gpu), tuple(settings))
    model = build(recipe).to(device).to(memory_format=convolution_format(device))
    if not titok and not dry:  # an unfitted quantiser would choose the same coefficients in all pictures
        given = weights.load("nano").state_dict()
        model.load_state_dict({key: given[key] for key in model.state_dict()})
    proxy = scratch / "vqgan.safetensors"
    if not proxy.exists():
        save_file(MaskGITVQGAN(32 if dry else 128).state_dict(), proxy)
    setup = objectives.Setup(device, Group(), proxy)
    begun = objectives.begin(recipe.phases, setup)
    precision, workers = find_dtype(None, device), os.cpu_count() or 1
    for cost in measure(Trainer(recipe, model, begun, images, scratch, autocast=precision, workers=workers)):
        place = {"phase": cost.phase.name, "side": cost.view.side, "batch": cost.view.batch_size}
        rates = {"pictures_per_s": round(cost.rate, 1), "fed_per_s": round(cost.fed, 1), "at_a_time": cost.images}
        yield place | rates | {"limit": "step" if cost.rate < cost.fed else "feed"} | peak()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()


# ---- all parts


def run_part(part: str, seconds: float, dry: bool) -> list[Row]:
    command = [sys.executable, __file__, "--part", part, "--seconds", str(seconds), *(["--dry"] if dry else [])]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = ""
    try:
        out, said = child.communicate(timeout=seconds + 15)
    except subprocess.TimeoutExpired:
        child.kill()
        out, said = child.communicate()
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    if child.returncode:
        last = (said.strip().splitlines() or ["nothing said"])[-1]
        rows.append({"part": part, "error": f"ended with {child.returncode}: {last[:300]}"})
    return rows


def run_tests(seconds: float, dry: bool) -> Row:
    """Counts by outcome, as pytest tells them."""
    if missing := [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]:
        return {"error": f"not run: {' and '.join(missing)} not installed"}
    chosen = ["-k", "cpu or waits", TESTS[0]] if dry else ["-m", "cuda", *TESTS]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--continue-on-collection-errors",
        "-rfEs",
        *chosen,
    ]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {seconds:.0f} s"}
    print(done.stdout[-4000:], flush=True)
    words = done.stdout.strip().splitlines()[-1:] or [done.stderr[-300:]]
    row = {"summary": words[0].strip("= "), "exit_code": done.returncode, "seconds": round(time.monotonic() - began)}
    return row if done.returncode == 0 else row | {"error": f"pytest ended with {done.returncode}"}


def machine() -> Row:
    import torch

    from titokc import __version__

    found = {"titokc": __version__, "torch": torch.__version__, "python": platform.python_version()}
    found |= {"processors": os.cpu_count(), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    if torch.cuda.is_available():
        of = torch.cuda.get_device_properties(0)
        found |= {"device": of.name, "memory_gib": round(of.total_memory / 2**30), "cuda": torch.version.cuda}
    return found


def tables(results: Row) -> Iterator[str]:
    """Markdown."""
    yield f"Tests: {results['tests'].get('summary', '')} {results['tests'].get('error', '')}".strip()
    yield "\n| pictures a second | dtype | mode | " + " | ".join(f"batch {b}" for b in BATCHES) + " | peak MiB |"
    yield "|---|---|---|" + "---|" * (len(BATCHES) + 1)
    cells = [row for row in results["rows"] if "work" in row]
    for model, work, dtype, mode in dict.fromkeys((r["model"], r["work"], r["dtype"], r["mode"]) for r in cells):
        mine = {
            r["batch"]: r for r in cells if (r["model"], r["work"], r["dtype"], r["mode"]) == (model, work, dtype, mode)
        }
        speeds = [str(mine.get(batch, {}).get("pictures_per_s", "-")) for batch in BATCHES]
        memory = max((row.get("peak_mib", 0) for row in mine.values()), default=0)
        yield f"| {model}: {work} | {dtype} | {mode} | {' | '.join(speeds)} | {memory} |"
    yield "\n| recipe | phase, side, batch | trained a second | fed a second | limit | peak MiB |"
    yield "|---|---|---|---|---|---|"
    for row in results["rows"]:
        if "phase" in row:
            place = f"{row['phase']}, {row['side']}, {row['batch']}"
            rates = f"{row['pictures_per_s']} | {row['fed_per_s']} | {row['limit']} | {row.get('peak_mib', 0)}"
            yield f"| {row['recipe']} | {place} | {rates} |"
    yield ""
    for row in results["rows"]:
        if "error" in row:
            yield "failed: " + ", ".join(str(value) for value in row.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="default: bench/results/cuda.json; with --dry, nowhere")
    parser.add_argument("--minutes", type=float, default=7.5, help="that all may take")
    parser.add_argument("--dry", action="store_true", help="on the CPU, with small sizes")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        import torch

        import titokc.engines.torch  # noqa: F401 - with what it needs
    except ImportError as error:
        sys.exit(
            f"{error.name} is not installed: titokc needs the packages of pyproject.toml's dependencies, and torch"
        )
    if not options.dry and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} finds no CUDA device; --dry tries this on the CPU")
    if options.part:
        rows = (
            training(options.seconds, options.dry)
            if options.part == "training"
            else cells(options.part, options.seconds, options.dry)
        )
        for row in rows:
            print(json.dumps(row), flush=True)
        return
    stop = time.monotonic() + 60 * options.minutes
    results: Row = {"machine": machine(), "tests": run_tests(20 * options.minutes, options.dry), "rows": []}
    output = options.output or (None if options.dry else ROOT / "bench" / "results" / "cuda.json")
    left = dict(PARTS)
    for part in PARTS:
        share = (stop - time.monotonic()) * left[part] / sum(left.values())
        del left[part]
        print(f"{part}: {share:.0f} s at most", flush=True)
        results["rows"] += run_part(part, max(1.0, share - 15), options.dry)
        if output:
            output.write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join(tables(results)))
    sys.exit(1 if "exit_code" in results["tests"] and results["tests"]["exit_code"] else 0)


if __name__ == "__main__":
    main()
