"""The report's page in a real browser: it sorts, slides, reorders, and runs nothing that a file name says."""

import json
import re
import shutil
import subprocess

import pytest

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

import titokc.bench.runner as runner_module
from titokc.bench import contenders
from titokc.bench.contenders.model import Model
from titokc.bench.report import write_report
from titokc.bench.rows import read_report
from titokc.bench.runner import Settings, run
from titokc.bench.summary import summarise
from titokc.codec import Codec

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]

# The folder's name and the file's make one that would end the script element, and add a picture that runs a script.
HOSTILE = 'x</script><img src=x onerror="document.title=1">.png'
FLAGS = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
    ),
    *("--disable-component-update", "--disable-sync", "--virtual-time-budget=20000", "--window-size=1200,900"),
)


@pytest.fixture(scope="module")
def page(tmp_path_factory, photo, make_tiny):
    """report.html of three pictures, one with a name that would like to be a script."""
    folder = tmp_path_factory.mktemp("browser")
    pictures, output = folder / "pictures", folder / "report"
    (pictures / HOSTILE).parent.mkdir(parents=True)
    for seed, name in enumerate(["a.png", "b.png", HOSTILE]):
        photo(40, 30, seed).save(pictures / name)

    def open_codec(spec, device="auto"):
        if spec == "tiny":
            return Model("tiny", Codec(tokenizer=make_tiny(), device="cpu"))
        return contenders.open_contender(spec, device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module, "open_contender", open_codec)
        run(
            Settings(
                source=pictures,
                output=output,
                codecs=("tiny", "webp"),
                budgets=(70, 156),
                crop="none",
                metrics=("psnr", "ssim"),
                cache=folder / "cache",
            )
        )
    rows, sets, environment = read_report(output)
    return write_report(output, rows, summarise(rows, sets, environment), environment)


@pytest.fixture
def in_browser(page, tmp_path):
    """Runs a script at the end of the page, whose last value must be JSON; returns that value."""

    def evaluate(script):
        probe = f"""<script>
        const done = value => {{
          const element = document.createElement("pre");
          element.id = "probe-result";
          element.textContent = JSON.stringify(value);
          document.body.append(element);
        }};
        addEventListener("load", () => {{ done((() => {{ {script} }})()); }});
        </script>"""
        copy = tmp_path / "page.html"
        copy.write_text(page.read_text("utf-8").replace("</body>", probe + "</body>"), "utf-8")
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", copy.as_uri()]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stdout
        found = re.search(r'<pre id="probe-result">(.*?)</pre>', shown, re.DOTALL)
        assert found, shown[-2000:]
        return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))

    return evaluate


def test_the_gallery_shows_every_picture_and_no_script_ran(in_browser):
    found = in_browser("""
        const names = [...document.querySelectorAll("#cards b")].map(element => element.textContent);
        const loaded = [...document.querySelectorAll("#cards img")].map(image => image.naturalWidth);
        return {names, loaded, title: document.title, foreign: document.querySelectorAll("img[src='x']").length};
    """)
    assert found["names"] == ["a.png", "b.png", HOSTILE]
    assert found["loaded"] == [40] * 6
    assert found["title"] == "titokc bench: 3 pictures, crop none"
    assert found["foreign"] == 0


def test_a_heading_sorts_its_column_both_ways(in_browser):
    found = in_browser("""
        const table = document.querySelector("#equal ~ .wide table");
        const heading = [...table.querySelectorAll("th")].find(each => each.textContent.startsWith("PSNR"));
        const column = () => [...table.tBodies[0].rows].map(row => Number(row.cells[heading.cellIndex].dataset.value));
        heading.click();
        const up = column();
        heading.click();
        return {up, down: column(), sort: heading.getAttribute("aria-sort")};
    """)
    assert found["up"] == sorted(found["up"])
    assert len(found["up"]) == 4
    assert found["down"] == found["up"][::-1]
    assert found["sort"] == "descending"


def test_the_slider_moves_the_cut_between_the_pictures(in_browser):
    found = in_browser("""
        const pair = document.querySelector(".pair");
        const slider = pair.querySelector("input");
        slider.value = 25;
        slider.dispatchEvent(new Event("input"));
        const over = pair.querySelector(".over");
        return {cut: getComputedStyle(over).clipPath, labels: slider.getAttribute("aria-label")};
    """)
    assert "75%" in found["cut"]
    assert found["labels"] == "a.png: original left, tiny right"


def test_choosing_sides_and_bytes_changes_the_pictures(in_browser):
    found = in_browser("""
        const before = document.querySelector("#cards img").src;
        document.getElementById("left").value = "webp";
        document.getElementById("budget").value = "156";
        document.getElementById("controls").dispatchEvent(new Event("change"));
        const card = document.querySelector("#cards figure");
        return {changed: document.querySelector("#cards img").src !== before, text: card.textContent};
    """)
    assert found["changed"]
    assert re.search(r"webp: 1\d\d B, PSNR \(dB\) [\d.]+, SSIM [\d.]+", found["text"])
    assert "tiny: " in found["text"]


def test_worst_first(in_browser, page):
    found = in_browser("""
        document.getElementById("order").value = "worst:psnr";
        document.getElementById("controls").dispatchEvent(new Event("change"));
        return [...document.querySelectorAll("#cards b")].map(element => element.textContent);
    """)
    rows, *_ = read_report(page.parent)
    psnr = {row["image"]: row["psnr"] for row in rows if (row["codec"], row["budget"]) == ("tiny", 70)}
    assert found == sorted(psnr, key=psnr.get)
