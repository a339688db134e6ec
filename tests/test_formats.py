"""formats/ and the code say the same: specification, id table, vectors, both implementations, magic and MIME."""

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from titokc import container, tiling
from titokc.container import Header, pack, read_header, truncate, unpack
from titokc.errors import ContainerError, LimitExceededError
from titokc.header import FACTORS
from titokc.limits import DEFAULT_LIMITS, Limits

FORMATS = Path(__file__).parents[1] / "formats"
VECTORS = FORMATS / "vectors"
SPEC = (FORMATS / "tok-v1.md").read_text("utf-8")
SPEC_2 = (FORMATS / "tok-v2.md").read_text("utf-8")
MANIFEST = json.loads((VECTORS / "manifest.json").read_text("utf-8"))
NO_LIMITS = Limits(1 << 32, 1 << 16, 1 << 24)
FIELDS = ("width", "height", "rows", "columns", "tokens_per_tile", "bits_per_index", "model_id")
ROOMS = ("titokc.container", "titokc.payload")
ERRORS = {error.__name__ for error in ContainerError.__subclasses__() if error.__module__ in ROOMS}
# Those that no whole file can give.
PAYLOAD_ERRORS = {"TextError", "FormError", "IndexRangeError"}
# The vectors as first published: new ones go to the end of their list, and none of these changes.
FROZEN = {
    "2419ddf7f9f2d232be0610fdb489eebade574ad1168c15b62c47e99dfd6aef7b": MANIFEST["valid"][:30]
    + MANIFEST["invalid"][:49],
    "5135c8d6194f637b0faa288a334d6096281edebb3d158367b31307df1eaab98a": MANIFEST["valid"][30:37]
    + MANIFEST["invalid"][49:72],
}


@pytest.fixture(scope="module")
def scripts():
    """(tok_reference, make_vectors), loaded from their files since formats/ is no package."""
    loaded = []
    for name in ("tok_reference", "make_vectors"):
        spec = importlib.util.spec_from_file_location(name, FORMATS / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
        loaded.append(sys.modules[name])
    yield loaded
    for module in loaded:
        del sys.modules[module.__name__]


def table(*columns: str, spec: str = SPEC) -> list[list[str]]:
    """The rows of the specification's table with these column names."""
    head = re.escape("| " + " | ".join(columns) + " |\n")
    (body,) = re.findall(head + r"\|[-|]+\|\n((?:\|.*\|\n)+)", spec)
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in body.splitlines()]


def vector(row: dict) -> bytes:
    return (VECTORS / row["file"]).read_bytes()


def header_of(row: dict) -> Header:
    values = {name: row[name] for name in FIELDS}
    fingerprint, shares = bytes.fromhex(row["fingerprint"]), bytes(row.get("shares", []))
    return Header(**values, fingerprint=fingerprint, nested=row["nested"], shares=shares)


def by_file(rows: list[dict]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=[Path(row["file"]).stem for row in rows])


class TestVectors:
    @pytest.mark.parametrize("frozen", FROZEN)
    def test_they_are_as_first_published(self, frozen):
        rows = sorted(FROZEN[frozen], key=lambda row: row["file"])
        listed = "".join(f"{row['file']} {row['sha256']}\n" for row in rows)
        assert hashlib.sha256(listed.encode()).hexdigest() == frozen

    def test_the_manifest_lists_every_file_and_its_hash(self):
        rows = MANIFEST["valid"] + MANIFEST["invalid"]
        assert {row["file"] for row in rows} == {
            path.relative_to(VECTORS).as_posix() for path in VECTORS.rglob("*.tok")
        }
        for row in rows:
            assert hashlib.sha256(vector(row)).hexdigest() == row["sha256"]
            assert len(vector(row)) == row["size_bytes"]

    @by_file(MANIFEST["valid"])
    def test_valid(self, row, scripts):
        reference, _ = scripts
        data, header = vector(row), header_of(row)
        limits = NO_LIMITS if row.get("over_default_limits") else DEFAULT_LIMITS
        assert unpack(data, limits=limits) == (header, row["indices"])
        assert read_header(data, limits=limits) == header
        assert pack(header, row["indices"]) == data
        assert container.file_size(header) == len(data)
        content = {name: value for name, value in row.items() if name in reference.read(data)}
        assert reference.read(data) == content
        assert reference.write(content) == data
        if row.get("over_default_limits"):
            with pytest.raises(LimitExceededError):
                unpack(data)

    @by_file(MANIFEST["invalid"])
    def test_invalid(self, row, scripts):
        reference, _ = scripts
        data = vector(row)
        assert Path(row["file"]).name.startswith(row["error"] + "-")
        for read in (unpack, read_header):
            with pytest.raises(ContainerError) as caught:
                read(data)
            assert type(caught.value).__name__ == row["error"]
        with pytest.raises(reference.RefusedError) as caught:
            reference.read(data)
        assert caught.value.rule == row["error"]

    @by_file(MANIFEST["invalid"])
    def test_invalid_read_as_cut_short_data(self, row, scripts):
        reference, _ = scripts
        data = vector(row)
        if "partial" in row:
            header, indices = unpack(data, partial=True)
            found = reference.read(data, partial=True)
            assert row["partial"] == {"tokens_per_tile": header.tokens_per_tile, "indices": indices}
            assert (found["tokens_per_tile"], found["indices"]) == (header.tokens_per_tile, indices)
            declared = read_header(data, partial=True)
            assert declared.tokens_per_tile >= header.tokens_per_tile
        else:
            with pytest.raises(ContainerError) as caught:
                unpack(data, partial=True)
            assert type(caught.value).__name__ == row["partial_error"]
            with pytest.raises(reference.RefusedError, match=row["partial_error"]):
                reference.read(data, partial=True)

    def test_every_error_has_a_vector(self):
        assert {row["error"] for row in MANIFEST["invalid"]} == ERRORS - PAYLOAD_ERRORS

    def test_making_them_again_gives_the_same_bytes(self, scripts, tmp_path):
        _, maker = scripts
        maker.main(tmp_path)
        made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")}
        kept = {path.relative_to(VECTORS): path.read_bytes() for path in VECTORS.rglob("*.*")}
        assert made == {path: data for path, data in kept.items() if path.name != ".gitattributes"}

    def test_the_maker_never_overwrites_a_vector(self, scripts, tmp_path):
        _, maker = scripts
        changed = tmp_path / "valid" / "nano-1-32-tokens.tok"
        changed.parent.mkdir()
        changed.write_bytes(b"other")
        with pytest.raises(SystemExit, match="frozen"):
            maker.main(tmp_path)
        assert changed.read_bytes() == b"other"

    def test_both_implementations_truncate_alike(self, scripts):
        reference, _ = scripts
        for row in MANIFEST["valid"]:
            if row["nested"] and row["tokens_per_tile"] > 1 and "over_default_limits" not in row:
                content = reference.read(vector(row))
                tokens = content["tokens_per_tile"] // 2
                content |= {"tokens_per_tile": tokens}
                count = sum(map(len, reference.tokens_of_tiles(content)))
                content["indices"] = content["indices"][:count]
                assert truncate(vector(row), tokens) == reference.write(content)


class TestSpecification:
    def test_the_worked_example(self, scripts):
        reference, _ = scripts
        (block,) = re.findall(r"```hex\n(.*?)```", SPEC, re.DOTALL)
        data = bytes.fromhex(block)
        indices = [0x123, 0x456, 0x789, 0xABC, 0xDEF, 0x012, 0x345, 0x678, 0x9AB]
        assert unpack(data) == (Header(300, 200, 1, 3, 3, 12, 1, b"\xc0\xdf"), indices)
        assert reference.read(data)["indices"] == indices
        rows = table("bytes", "field", "meaning")
        assert bytes.fromhex("".join(row[0].strip("`") for row in rows)) == data
        named = [row[0] for row in table("field", "bytes", "present", "content")]
        assert [row[1] for row in rows] == [name for name in named if name != "custom"]

    def test_the_id_table_the_json_and_the_code_agree(self):
        models = json.loads((FORMATS / "ids.json").read_text("utf-8"))["models"]
        assert models[0] == {"id": container.CUSTOM_MODEL_ID, "name": "custom"}
        assert models[1:] == [row._asdict() for row in container.KNOWN_MODELS.values()]
        assert [row["id"] for row in models] == list(range(len(models))) == [0, *container.KNOWN_MODELS]
        for model, cells in zip(models[1:], table("id", "name", "bits", "tokens", "nested")[1:], strict=True):
            tokens = str(model["max_tokens"])
            nested = "yes" if model["nested"] else "no"
            assert cells == [str(model["id"]), model["name"], str(model["bits_per_index"]), tokens, nested]

    def test_first_rows_of_the_id_table_never_change(self):
        assert list(container.KNOWN_MODELS.values())[:7] == [
            (1, "nano-1", 12, 128, True, "05e706d2cf05110ff6cf7e1ecd921c55c2ed7aaa69b30fc86bd8e8f26208fa55"),
            (2, "titok-l-32", 12, 32, False, ""),
            (3, "titok-b-64", 12, 64, False, ""),
            (4, "titok-s-128", 12, 128, False, ""),
            (5, "titok-bl-64", 13, 64, False, ""),
            (6, "titok-bl-128", 13, 128, False, ""),
            (7, "titok-sl-256", 13, 256, False, ""),
        ]

    def test_every_reason_for_refusal_is_listed_under_its_name(self):
        listed = {row[2] for row in table("step", "rule", "error")}
        assert listed == ERRORS - PAYLOAD_ERRORS | {"LimitExceededError"}
        assert [error for error in PAYLOAD_ERRORS if f"({error})" not in SPEC] == []

    def test_the_limits(self):
        defaults = [int(row[1]) for row in table("limit", "default")]
        limits = DEFAULT_LIMITS
        assert defaults == [limits.max_pixels, limits.max_side, limits.max_indices]

    def test_the_size_classes(self):
        for row in table("size class", "bytes", "bits a side", "holds"):
            number, size, bits = map(int, row[:3])
            largest = 256 if number == 0 else 1 << bits
            other = largest if number != 1 else 255
            header = Header(largest, other, 1, 1, 32, 12, 1, b"ab")
            data = pack(header, [0] * 32)
            assert (data[4] >> 3 & 3, len(data)) == (number, 59 + size)
            assert str(largest) in row[3]

    def test_the_constants(self):
        assert bytes.fromhex(re.search(r"`([0-9a-f ]{11})`: 0xF5", SPEC)[1]) == container.MAGIC
        assert f"File suffix `{container.SUFFIX}`, media type `{container.MIME_TYPE}`" in SPEC
        assert f"at most {container.SHORT_FILE_SIZE} bytes, checksum included" in SPEC

    def test_the_tile_geometry(self):
        for pixels, tiles, starts in table("pixels", "tiles", "starts"):
            spans = tiling.spans(int(pixels), int(tiles))
            assert [start for start, _ in spans] == list(map(int, starts.split()))
            assert [stop for _, stop in spans] == [*map(int, starts.split()[1:]), int(pixels)]

    @pytest.mark.parametrize("spec", [SPEC, SPEC_2], ids=["1", "2"])
    def test_files_named_in_it_exist(self, spec):
        assert {name for name in re.findall(r"\]\(([^)]+)\)", spec) if not (FORMATS / name).exists()} == set()


class TestSpecificationOfVersion2:
    def test_the_worked_example(self, scripts):
        reference, _ = scripts
        (block,) = re.findall(r"```hex\n(.*?)```", SPEC_2, re.DOTALL)
        data = bytes.fromhex(block)
        header = Header(512, 512, 2, 2, 4, 12, 1, b"\xc0\xdf", shares=b"\0\1\4\x08")
        indices = [0x123, 0x456, 0x789, 0xABC, 0xDEF, 0x012, 0x345, 0x678, 0x9AB, 0xCDE]
        assert unpack(data) == (header, indices)
        assert reference.read(data)["indices"] == indices
        tiles = re.findall(r"[Tt]ile \d has(?: the indices)?((?: [0-9a-f]{3})+)", SPEC_2.replace("\n", " "))
        assert [[int(index, 16) for index in tile.split()] for tile in tiles] == reference.tokens_of_tiles(
            reference.read(data)
        )
        rows = table("bytes", "field", "meaning", spec=SPEC_2)
        assert bytes.fromhex("".join(row[0].strip("`") for row in rows)) == data

    def test_the_table_of_shares(self, scripts):
        reference, _ = scripts
        rows = table("share", "F", "of 128", "of 32", "of 8", spec=SPEC_2)
        assert [int(row[0]) for row in rows] == list(range(16))
        assert [int(row[1]) for row in rows] == list(FACTORS)
        for column, tokens in enumerate((128, 32, 8), 2):
            counts = [int(row[column]) for row in rows]
            assert counts == container.possible_counts(tokens)
            assert counts == [reference.count_of(tokens, share) for share in range(16)]
        exact = [65536 / 2 ** (share / 4) for share in range(16)]
        assert all(factor <= value < factor + 1 for factor, value in zip(FACTORS, exact, strict=True))

    def test_its_reasons_for_refusal_have_names(self):
        assert {row[2] for row in table("step", "rule", "error", spec=SPEC_2)} <= ERRORS

    def test_the_tiles_take_turns_alike_in_both_implementations(self, scripts):
        reference, _ = scripts
        for row in MANIFEST["valid"]:
            if "over_default_limits" not in row:
                header, indices = unpack(vector(row))
                tiles: list[list[int]] = [[] for _ in range(header.tiles)]
                for tile, index in zip(container.tile_order(header), indices, strict=True):
                    tiles[tile].append(index)
                assert tiles == reference.tokens_of_tiles(reference.read(vector(row)))
                assert tuple(map(len, tiles)) == header.counts


class TestDefinitions:
    @pytest.mark.skipif(shutil.which("file") is None, reason="needs the file command")
    def test_magic(self):
        rows = [row for row in MANIFEST["valid"] if row["model_id"] or row["size_bytes"] < 4000]
        command = ["file", "-b", "-m", FORMATS / "tok.magic", *(VECTORS / row["file"] for row in rows)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        for row, line in zip(rows, lines, strict=True):
            model = header_of(row).model.replace("custom", "custom model")
            tokens = f"{'at most ' if 'shares' in row else ''}{row['tokens_per_tile']}"
            version = 2 if "shares" in row else 1
            assert line == f"titokc picture, version {version}, {model}, tokens per tile: {tokens}"
        command[1:2] = ["--brief", "--mime-type"]
        kinds = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        assert set(kinds) == {container.MIME_TYPE}

    @pytest.mark.skipif(shutil.which("file") is None, reason="needs the file command")
    def test_magic_leaves_other_files_alone(self, tmp_path):
        others = [row for row in MANIFEST["invalid"] if row["error"] == "MagicError"]
        command = ["file", "-b", "-m", FORMATS / "tok.magic", FORMATS / "tok-v1.md"]
        command += [VECTORS / row["file"] for row in others]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert "titokc picture" not in lines
        future = tmp_path / "future.tok"
        future.write_bytes(container.MAGIC + b"\x40\xff\xff")
        lines = subprocess.run([*command[:4], future], check=True, capture_output=True, text=True).stdout
        assert lines == "titokc picture, version 2\n"

    def test_mime(self):
        space = "{http://www.freedesktop.org/standards/shared-mime-info}"
        (kind,) = ElementTree.parse(FORMATS / "titokc.xml").getroot()
        assert kind.tag == f"{space}mime-type"
        assert kind.get("type") == container.MIME_TYPE
        assert kind.find(f"{space}glob").get("pattern") == f"*{container.SUFFIX}"
        match = kind.find(f"{space}magic/{space}match")
        assert (match.get("type"), match.get("offset")) == ("string", "0")
        assert match.get("value").encode().decode("unicode_escape").encode("latin-1") == container.MAGIC

    @pytest.mark.skipif(shutil.which("update-mime-database") is None, reason="needs update-mime-database")
    def test_mime_database(self, tmp_path):
        (tmp_path / "packages").mkdir()
        shutil.copy(FORMATS / "titokc.xml", tmp_path / "packages")
        subprocess.run(["update-mime-database", tmp_path], check=True, capture_output=True)
        assert f"{container.MIME_TYPE}:*.tok" in (tmp_path / "globs").read_text().splitlines()
        assert container.MAGIC in (tmp_path / "magic").read_bytes()


def test_the_reference_imports_the_standard_library_alone():
    for name in ("tok_reference", "make_vectors"):
        source = (FORMATS / f"{name}.py").read_text("utf-8")
        imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE)) - {"tok_reference"}
        assert imported <= sys.stdlib_module_names


def test_formats_is_no_package():
    assert not list(FORMATS.rglob("__init__.py"))
