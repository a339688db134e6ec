"""formats/web: the reader in JavaScript keeps the specifications (in Node), and the page decodes as titokc does (in
headless Chromium, driven over its debugging pipe)."""

import base64
import json
import os
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from titokc import container, tiling
from titokc.codec import Codec

ROOT = Path(__file__).parents[1]
FORMATS = ROOT / "formats"
# What `make web` fetches.
RUNTIME = [ROOT / "web" / name for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")]
NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_node = pytest.mark.skipif(NODE is None, reason="no Node")


def node(script: str, *arguments: Path):
    """What a script logs as JSON; it has the exports of tok.mjs, readFileSync and the arguments."""
    head = f"""
        import {{ readFileSync }} from "node:fs";
        const tok = await import({json.dumps((FORMATS / "web" / "tok.mjs").as_uri())});
        const json = (path) => JSON.parse(readFileSync(path, "utf-8"));
        const [folder, exported] = process.argv.slice(1);
        const models = json(`${{folder}}/ids.json`).models;
    """
    command = [NODE, "--input-type=module", "--eval", head + script, FORMATS, *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)


@in_node
@pytest.mark.parametrize("shares", [[], [0, 0, 0, 0, 0, 0], [0, 3, 1, 8, 2, 2]])
def test_tiles_are_joined_in_javascript_as_in_python(photo, shares):
    tiles = [photo(16, 16, seed).point(lambda value: 100 + value // 16) for seed in range(6)]
    squares = [{"width": 16, "height": 16, "data": list(tile.tobytes())} for tile in tiles]
    header = {"width": 50, "height": 37, "rows": 2, "columns": 3, "shares": shares}
    script = f"""
        const tiles = {json.dumps(squares)}.map((tile) => ({{ ...tile, data: Uint8ClampedArray.from(tile.data) }}));
        console.log(JSON.stringify([...tok.assemble(tiles, {json.dumps(header)}).data]));
    """
    expected = np.asarray(tiling.assemble(tiles, (2, 3), (50, 37), unequal=any(shares)))
    assert np.abs(np.array(node(script)).reshape(37, 50, 3) - expected.astype(int)).max() <= 1


@in_node
def test_the_reader_in_javascript_keeps_every_vector():
    found = node("""
        const manifest = json(`${folder}/vectors/manifest.json`);
        const read = (row, options) => {
          try {
            const { model_id, ...header } = tok.parse(readFileSync(`${folder}/vectors/${row.file}`), models, options);
            return header;
          } catch (error) {
            return error instanceof tok.TokError ? error.name : String(error);
          }
        };
        const limits = { pixels: 2 ** 32, side: 2 ** 16, indices: 2 ** 24 };
        console.log(JSON.stringify({
          valid: manifest.valid.map((row) => read(row, { limits })),
          limited: manifest.valid.map((row) => read(row)),
          invalid: manifest.invalid.map((row) => read(row)),
          partial: manifest.invalid.map((row) => read(row, { partial: true })),
        }));
    """)
    manifest = json.loads((FORMATS / "vectors" / "manifest.json").read_text("utf-8"))
    names = {"tokens_per_tile": "tokens", "bits_per_index": "bits", "model_id": "id"}
    for row, header, limited in zip(manifest["valid"], found["valid"], found["limited"], strict=True):
        content = {names.get(name, name): value for name, value in row.items() if names.get(name, name) in header}
        assert len(content) == (11 if "shares" in row else 10), row["file"]
        assert {name: header[name] for name in content} == content
        assert limited == ("LimitExceededError" if row.get("over_default_limits") else header)
    assert found["invalid"] == [row["error"] for row in manifest["invalid"]]
    for row, made in zip(manifest["invalid"], found["partial"], strict=True):
        if "partial" in row:
            assert row["partial"] == {"tokens_per_tile": made["tokens"], "indices": made["indices"]}
        else:
            assert made == row["partial_error"]


@in_node
def test_tiles_get_their_tokens_in_javascript():
    found = node("""
        const read = (hex) => tok.parse(Uint8Array.from(Buffer.from(hex, "hex")), models);
        const files = [
          "f5746f6b540103c0df1ff1ff01010148123456789abcdef0123456789abcde7ef1",
          "f5746f6b340102c0df12b0c70002123456789abcdef0123456789ab0a475",
        ];
        console.log(JSON.stringify(files.map((hex) => tok.tokensOfTiles(read(hex)))));
    """)
    assert found == [
        [[0x123, 0xDEF, 0x012, 0x678], [0x456, 0x345, 0x9AB], [0x789, 0xCDE], [0xABC]],
        [[0x123, 0xABC, 0x345], [0x456, 0xDEF, 0x678], [0x789, 0x012, 0x9AB]],
    ]


@in_node
def test_noise_in_javascript():
    from titokc.models.nano.noise import noise

    found = node("console.log(JSON.stringify([tok.noise([], 4), tok.noise([3, 4095, 0], 1000)].map((n) => [...n])))")
    assert found[0] == pytest.approx([1.3278276, -0.23719406, -1.6404815, 1.6311829])
    assert found[1] == noise(np.array([3, 4095, 0]), 1000).tolist()


@in_node
@pytest.mark.parametrize("size", [(7, 300), (256, 100), (600, 400), (1, 1), (90, 256)])
def test_scaling_in_javascript_is_pillows(tmp_path, size):
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    (tmp_path / "pixels").write_bytes(pixels.tobytes())
    found = node(
        f"""
        const picture = {{ width: 256, height: 256, data: readFileSync(exported) }};
        console.log(JSON.stringify(Buffer.from(tok.resize(picture, {size[0]}, {size[1]}).data).toString("base64")));
    """,
        tmp_path / "pixels",
    )
    expected = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    assert base64.b64decode(found) == expected.tobytes()


@in_node
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quantiser_in_javascript_gives_the_frozen_integers(onnx_folder):
    found = node(
        """
        const { quantizer } = json(`${exported}/model.json`);
        const bytes = readFileSync(`${exported}/${quantizer.file}`);
        const decoder = new tok.Quantizer(quantizer, new Uint8Array(bytes).buffer);
        const { code, ...vectors } = json(`${folder}/nano/vectors.json`);
        const made = Object.entries(vectors).map(([name, { indices }]) => {
          const { values, levels } = decoder.integers(indices);
          return [name, { values: [...values].flatMap((v, c) => (v ? [[c, v]] : [])), levels: [...levels] }];
        });
        console.log(JSON.stringify(Object.fromEntries(made)));
    """,
        onnx_folder,
    )
    vectors = json.loads((FORMATS / "nano" / "vectors.json").read_text("utf-8"))
    code = json.loads((onnx_folder / "model.json").read_text("utf-8"))["code"]
    assert vectors.pop("code") == code
    for name, vector in vectors.items():
        assert found[name] == {"values": vector["values"], "levels": vector["levels"]}, name


class Browser:
    """A page of headless Chromium, by the DevTools protocol over a pair of pipes: JSON, each ended by a zero byte."""

    def __init__(self, profile: Path) -> None:
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-sync"
        shell = (
            f'exec "$0" {flags} --disable-background-networking --remote-debugging-pipe "$@" 3<&{commands} 4>&{answers}'
        )
        self._process = subprocess.Popen(
            ["bash", "-c", shell, CHROMIUM, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(commands, answers),
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._number, self._read, self._session = 0, b"", {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}

    def call(self, method: str, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._read:
                more = os.read(self._answers, 1 << 20)
                assert more, "Chromium has ended"
                self._read += more
            answer, _, self._read = self._read.partition(b"\0")
            found = json.loads(answer)
            if found.get("id") == self._number:
                assert "result" in found, found
                return found["result"]

    def evaluate(self, expression: str):
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not self.evaluate(expression):
            assert time.monotonic() < end, (expression, self.evaluate("document.body.innerText"))
            time.sleep(0.05)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)


def shared(data: bytes, shares: bytes) -> bytes:
    """The file in which each tile has its share of the tokens of this one."""
    header, indices = container.unpack(data)
    header = replace(header, shares=shares)
    tiles = [iter(indices[tile :: header.tiles]) for tile in range(header.tiles)]
    return container.pack(header, [next(tiles[tile]) for tile in container.tile_order(header)])


@pytest.fixture(scope="module")
def files(tmp_path_factory, photo):
    """Name -> a file: whole, of few tokens, in tiles (of uneven sizes, of uneven tokens), cut short, damaged."""
    folder, codec = tmp_path_factory.mktemp("files"), Codec("nano")
    whole = codec.encode(photo(256, 256, 1), effort=0)
    made = {
        "square.tok": whole,
        "small.tok": codec.encode(photo(90, 120, 2), tokens=8, effort=0),
        "tiles.tok": codec.encode(photo(301, 203, 3), tokens=32, tiles=(2, 3), effort=0),
        "shares.tok": shared(codec.encode(photo(301, 203, 3), tokens=32, tiles=(2, 2), effort=0), b"\0\3\x0f\5"),
        "cut.tok": whole[:100],
        "damaged.tok": whole[:50] + bytes([whole[50] ^ 1]) + whole[51:],
    }
    for name, data in made.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory, onnx_folder):
    """The page of formats/web, opened from a static server."""
    site = tmp_path_factory.mktemp("site")
    for path in [*(FORMATS / "web").iterdir(), FORMATS / "ids.json", *RUNTIME]:
        shutil.copy(path, site)
    (site / "nano").symlink_to(onnx_folder)

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=site)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        browser.call("Page.navigate", url=f"http://127.0.0.1:{server.server_port}/index.html")
        browser.wait("document.body?.dataset.state === 'ready'")
        yield browser
    finally:
        browser.close()
        server.shutdown()


class TestPage:
    pytestmark = [  # noqa: RUF012
        pytest.mark.slow,
        pytest.mark.timeout(900),
        pytest.mark.skipif(CHROMIUM is None, reason="no Chromium"),
        pytest.mark.skipif(not RUNTIME[0].exists(), reason="no onnxruntime-web: make web fetches it"),
    ]

    @staticmethod
    def pick(page: Browser, path: Path) -> str:
        """Chooses a file in the file picker; the state that this ends in."""
        page.evaluate("document.body.dataset.state = 'asked'")
        picker = page.call("Runtime.evaluate", expression="document.getElementById('picker')")["result"]
        page.call("DOM.setFileInputFiles", files=[str(path)], objectId=picker["objectId"])
        page.wait("['ready', 'error'].includes(document.body.dataset.state)")
        return page.evaluate("document.body.dataset.state")

    @staticmethod
    def pixels(page: Browser) -> np.ndarray:
        """What the page shows: uint8 [height, width, 3]."""
        text = page.evaluate("""(() => {
            const canvas = document.querySelector("canvas");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let text = "";
            for (let at = 0; at < data.length; at += 9999) text += String.fromCharCode(...data.subarray(at, at + 9999));
            return [canvas.width, canvas.height, btoa(text)];
        })()""")
        return np.frombuffer(base64.b64decode(text[2]), np.uint8).reshape(text[1], text[0], 4)[..., :3]

    @pytest.mark.parametrize("look", ["faithful", "natural"])
    @pytest.mark.parametrize("name", ["square.tok", "small.tok", "tiles.tok", "shares.tok"])
    def test_a_picked_file_shows_what_titokc_decodes(self, page, files, name, look):
        page.evaluate(f"document.querySelector('[data-look={look}]').click()")
        page.wait("document.body.dataset.state !== 'busy'")
        assert self.pick(page, files / name) == "ready"
        expected = np.array(Codec("nano").decode((files / name).read_bytes(), look=look))
        found = self.pixels(page)
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).max() <= 2
        facts = page.evaluate("document.getElementById('facts').innerText")
        assert name in facts
        assert "nano-1" in facts
        assert ("32 in each of 2 × 3 tiles" in facts) == (name == "tiles.tok")
        assert ("66, at most 32 in each of 2 × 2 tiles" in facts) == (name == "shares.tok")
        size = page.evaluate("document.getElementById('size').textContent")
        assert size.startswith(f"{(files / name).stat().st_size} bytes")

    def test_a_bad_file_gives_the_reason_and_the_page_goes_on(self, page, files):
        assert self.pick(page, files / "damaged.tok") == "error"
        assert page.evaluate("document.getElementById('error').textContent").startswith(
            "ChecksumError: checksum at byte"
        )
        assert self.pick(page, files / "square.tok") == "ready"
        assert page.evaluate("document.getElementById('error').hidden")

    def test_of_a_cut_file_the_page_offers_what_is_there(self, page, files):
        page.evaluate("document.querySelector('[data-look=faithful]').click()")
        page.wait("document.body.dataset.state !== 'busy'")
        assert self.pick(page, files / "cut.tok") == "error"
        page.evaluate("document.querySelector('#error button').click()")
        page.wait("document.body.dataset.state === 'ready'")
        data = (files / "cut.tok").read_bytes()
        expected = np.array(Codec("nano").decode(data, partial=True), int)
        assert np.abs(self.pixels(page) - expected).max() <= 2
        assert "of 128; the checksum was not checked" in page.evaluate("document.getElementById('facts').innerText")

    def test_dropped_files_and_links_are_shown(self, page, files):
        data = base64.b64encode((files / "small.tok").read_bytes()).decode()
        page.evaluate(f"""(() => {{
            document.body.dataset.state = "asked";
            const dataTransfer = new DataTransfer();
            const bytes = Uint8Array.from(atob("{data}"), (letter) => letter.charCodeAt(0));
            dataTransfer.items.add(new File([bytes], "<i>dropped</i>.tok"));
            dispatchEvent(new DragEvent("drop", {{ dataTransfer }}));
        }})()""")
        page.wait("document.body.dataset.state === 'ready'")
        assert "<i>dropped</i>.tok" in page.evaluate("document.getElementById('facts').innerText")
        link = base64.urlsafe_b64encode((files / "square.tok").read_bytes()).decode().rstrip("=")
        page.evaluate(f"document.body.dataset.state = 'asked'; location.hash = '{link}'")
        page.wait("document.body.dataset.state === 'ready'")
        assert "from the link" in page.evaluate("document.getElementById('facts').innerText")
        assert page.evaluate("document.querySelector('canvas').width") == 256
