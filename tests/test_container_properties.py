"""Properties of the container that hold for anything; conftest.py says how many examples of each are tried."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies
from hypothesis.strategies import SearchStrategy, binary, booleans, composite, integers, lists, sampled_from

from titokc import container
from titokc.container import KNOWN_MODELS, Header, pack, truncate, unpack
from titokc.errors import TitokcError
from titokc.limits import Limits
from titokc.payload import pack_bare, to_text, unpack_bare, unpack_text

ROOT = Path(__file__).parents[1]
NO_LIMITS = Limits(1 << 32, 1 << 16, 1 << 24)


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fuzz = load(ROOT / "tests" / "fuzz" / "fuzz_tok.py")
reference = load(ROOT / "formats" / "tok_reference.py")
VECTORS = [data for path in sorted(fuzz.VECTORS.rglob("*.tok")) if 0 < len(data := path.read_bytes()) < 600]


def sides() -> SearchStrategy[int]:
    return strategies.one_of(integers(1, 300), integers(1, 65536), sampled_from([1, 255, 256, 257, 4096, 4097, 65536]))


@composite
def shares(draw, header: Header) -> bytes:
    """None, or those of a header that can have them: one is 0 and one is not."""
    if not header.nested or header.tiles == 1 or draw(booleans()):
        return b""
    found = draw(binary(min_size=header.tiles - 2, max_size=header.tiles - 2))
    return bytes(draw(strategies.permutations([0, draw(integers(1, 15)), *(byte & 15 for byte in found)])))


@composite
def headers(draw) -> Header:
    """Any header that can be written, of at most 300 indices."""
    width, height = draw(sides()), draw(sides())
    rows = draw(integers(1, min(20, height)))
    columns = draw(integers(1, min(300 // rows, 256, width)))
    model = KNOWN_MODELS.get(draw(sampled_from([0, 0, *KNOWN_MODELS])))
    fingerprint = draw(binary(min_size=2, max_size=2))
    most = max(1, 300 // (rows * columns))
    if model and model.nested:
        tokens = draw(integers(1, min(most, model.max_tokens)))
    elif model and model.max_tokens <= most:
        tokens = model.max_tokens
    else:
        tokens, bits = draw(integers(1, min(most, 256))), draw(integers(1, 16))
        header = Header(width, height, rows, columns, tokens, bits, 0, fingerprint, draw(booleans()))
        return replace(header, shares=draw(shares(header)))
    header = Header(width, height, rows, columns, tokens, model.bits_per_index, model.id, fingerprint)
    return replace(header, shares=draw(shares(header)))


def fewer(header: Header, tokens: int) -> Header:
    return replace(header, tokens_per_tile=tokens)


@composite
def files(draw) -> tuple[Header, list[int]]:
    header = draw(headers())
    source = draw(strategies.randoms(use_true_random=False))
    return header, [source.randrange(1 << header.bits_per_index) for _ in range(header.indices)]


@given(files())
def test_what_was_packed_is_unpacked_by_both_implementations(file):
    header, indices = file
    data = pack(header, indices)
    assert len(data) == container.file_size(header)
    assert unpack(data, limits=NO_LIMITS) == (header, indices)
    found = reference.read(data)
    assert found["indices"] == indices
    assert reference.write(found) == data
    assert tuple(map(len, reference.tokens_of_tiles(found))) == header.counts


@given(files(), integers(0, 2000))
def test_a_cut_file_gives_the_largest_number_of_whole_tokens(file, length):
    header, indices = file
    data = pack(header, indices)[:length]
    start = container.file_size(header) - header.payload_bytes
    start -= 2 if container.file_size(header) <= container.SHORT_FILE_SIZE else 4
    there = max(0, (len(data) - start) * 8 // header.bits_per_index)
    tokens = sum(fewer(header, tokens).indices <= there for tokens in range(1, header.tokens_per_tile + 1))
    if tokens:
        expected = fewer(header, tokens), indices[: fewer(header, tokens).indices]
        assert unpack(data, partial=True, limits=NO_LIMITS) == expected
    else:
        with pytest.raises(container.MagicError if length < 4 else container.TruncatedError):
            unpack(data, partial=True, limits=NO_LIMITS)


@given(files(), integers(1, 256))
def test_truncating_is_packing_fewer_tokens(file, tokens):
    header, indices = file
    tokens = min(tokens, header.tokens_per_tile)
    if header.nested:
        expected = pack(fewer(header, tokens), indices[: fewer(header, tokens).indices])
        assert truncate(pack(header, indices), tokens, limits=NO_LIMITS) == expected


@settings(max_examples=2000)
@given(binary(max_size=300))
def test_any_bytes_give_a_typed_error_or_the_one_valid_file(data):
    fuzz.check(data)


@given(sampled_from(VECTORS), lists(strategies.tuples(integers(4, 600), integers(0, 255)), max_size=4))
def test_changed_vectors_with_length_and_checksum_repaired_too(vector, changes):
    data = bytearray(vector)
    for at, value in changes:
        data[at % len(data)] = value
    fuzz.check(bytes(data))


@given(files(), integers(0, 1 << 20), integers(0, 1 << 20))
def test_one_or_two_flipped_bits_are_refused_in_any_file(file, first, second):
    data = pack(*file)
    bits = len(data) * 8
    mask = 1 << first % bits | 1 << second % bits
    with pytest.raises(TitokcError):
        unpack((int.from_bytes(data, "big") ^ mask).to_bytes(len(data), "big"), limits=NO_LIMITS)


@pytest.mark.parametrize("bits", range(1, 17))
def test_packing_of_every_count_agrees_with_an_independent_packer(bits):
    """Every count 1..256: all the indices are one big number."""
    for count in range(1, 257):
        indices = [(40503 * (i + count) + bits) % (1 << bits) for i in range(count)]
        number = 0
        for index in indices:
            number = number << bits | index
        size = -(-count * bits // 8)
        packed = (number << size * 8 - count * bits).to_bytes(size, "big")
        assert pack_bare(indices, bits) == packed
        assert unpack_bare(packed, bits, count) == indices


@given(integers(1, 16), strategies.data())
def test_any_cut_of_a_payload_gives_its_whole_indices(bits, data):
    indices = data.draw(lists(integers(0, (1 << bits) - 1), min_size=1, max_size=256))
    packed = pack_bare(indices, bits)
    text = to_text(packed)
    spaces = data.draw(lists(integers(0, len(text)), max_size=8))
    for form, unit, read in ((packed, 8, unpack_bare), (text, 6, unpack_text)):
        length = data.draw(integers(0, len(form)))
        whole = min(len(indices), length * unit // bits)
        if whole:
            assert read(form[:length], bits, len(indices), partial=True) == indices[:whole]
    for at in sorted(spaces, reverse=True):
        text = text[:at] + data.draw(sampled_from(["\n", "\r\n", " ", "\t"])) + text[at:]
    for form in (text, text.replace("-", "+").replace("_", "/") + "=="):
        assert unpack_text(form, bits, len(indices)) == indices


@pytest.mark.parametrize("target", ["container", "pillow"])
def test_a_short_run_of_fuzzing_finds_nothing(capsys, target):
    fuzz.run_random(fuzz.TARGETS[target], seconds=60, seed=0, runs=1500)
    assert "1500 inputs" in capsys.readouterr().out


def test_fuzzing_finds_a_rule_that_is_not_checked(monkeypatch):
    monkeypatch.setattr(container, "check_padding", lambda *args: None)
    with pytest.raises(RuntimeError, match="not the one valid encoding"):
        fuzz.run_random(fuzz.check, seconds=20, seed=0)


def test_fuzzing_finds_an_untyped_error(monkeypatch):
    monkeypatch.setattr(Limits, "check", lambda limits, size: 1 // (size[0] - 256))
    with pytest.raises(ZeroDivisionError):
        fuzz.run_random(fuzz.check, seconds=20, seed=0)
