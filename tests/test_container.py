"""The container's own promises: literal bytes, every flipped bit, hostile headers, cut-short data."""

import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from itertools import combinations

import pytest

from titokc import container
from titokc.container import (
    KNOWN_MODELS,
    ChecksumError,
    GridError,
    Header,
    MagicError,
    NonCanonicalError,
    ReservedBitsError,
    TokenCountError,
    UnknownModelError,
    VersionError,
    examine,
    file_size,
    pack,
    possible_counts,
    read_header,
    tile_order,
    truncate,
    unpack,
)
from titokc.errors import ContainerError, LimitExceededError, UsageError
from titokc.limits import Limits
from titokc.payload import PaddingError, TrailingDataError, TruncatedError, pack_indices, to_text

NANO = Header(256, 256, 1, 1, 4, 12, 1, b"\xab\xcd")
NANO_INDICES = [0x123, 0x456, 0x789, 0xABC]
NANO_BYTES = bytes.fromhex("f5746f6b 20 01 03 abcd 123456789abc c265")
TILED = Header(300, 200, 1, 3, 3, 12, 1, b"\xc0\xdf")
TILED_INDICES = [0x123, 0x456, 0x789, 0xABC, 0xDEF, 0x012, 0x345, 0x678, 0x9AB]
CUSTOM = Header(256, 256, 1, 1, 32, 12, 0, b"\xab\xcd", nested=True)
# 4, 3, 2 and 1 tokens.
SHARED = Header(256, 256, 2, 2, 4, 12, 1, b"\xab\xcd", shares=b"\0\1\4\x08")
SHARED_INDICES = [0x123, 0x456, 0x789, 0xABC, 0xDEF, 0x012, 0x345, 0x678, 0x9AB, 0xCDE]
SHARED_BYTES = bytes.fromhex("f5746f6b 44 01 03 abcd 0101 0148 123456789abcdef0123456789abcde 60b0")


def indices(header: Header) -> list[int]:
    return [(i * 40503 + 7) % (1 << header.bits_per_index) for i in range(header.indices)]


def python(code: str, *options: str) -> str:
    """Runs code in a child process of this interpreter and gives its output."""
    command = [sys.executable, *options, "-c", textwrap.dedent(code)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


class TestBytes:
    def test_one_tile_of_a_known_model(self):
        assert pack(NANO, NANO_INDICES) == NANO_BYTES
        assert unpack(NANO_BYTES) == (NANO, NANO_INDICES)

    def test_custom_model_stores_its_bits_and_nesting(self):
        header = Header(1, 1, 1, 1, 3, 5, 0, b"\x01\x02", nested=True)
        data = bytes.fromhex("f5746f6b 28 00 02 0102 84 0000 fc10 d8a4")
        assert pack(header, [31, 16, 8]) == data
        assert unpack(data) == (header, [31, 16, 8])

    def test_indices_are_interleaved_by_tile(self):
        data = pack(TILED, TILED_INDICES)
        assert data.hex(" ", -4) == "f5746f6b 340102c0 df12b0c7 00021234 56789abc def01234 56789ab0 a475"

    @pytest.mark.parametrize(("tokens", "size"), [(32, 59), (64, 107), (96, 155), (128, 203)])
    def test_overhead_is_eleven_bytes_for_one_256x256_picture(self, tokens, size):
        header = replace(NANO, tokens_per_tile=tokens)
        assert len(pack(header, indices(header))) == file_size(header) == size
        assert size - header.payload_bytes == 11

    @pytest.mark.parametrize(
        ("width", "height", "rows", "columns", "overhead"),
        [
            (256, 256, 1, 1, 11),
            (256, 255, 1, 1, 13),
            (768, 512, 1, 1, 14),
            (4096, 4096, 1, 1, 14),
            (4097, 1, 1, 1, 15),
            (65536, 65536, 1, 1, 15),
            (256, 256, 1, 2, 13),
            (768, 512, 2, 3, 16),
        ],
    )
    def test_overhead_of_sizes_and_grids(self, width, height, rows, columns, overhead):
        header = Header(width, height, rows, columns, 32, 12, 1, b"\xab\xcd")
        assert file_size(header) - header.payload_bytes == overhead

    def test_no_valid_file_is_longer_than_the_stated_maximum(self):
        equal = Header(65536, 65536, 256, 256, 256, 16, 0, b"\xab\xcd", nested=True)
        assert file_size(equal) == 33_554_452
        # One token less in one tile, and a share of half a byte for each.
        largest = replace(equal, tokens_per_tile=1, shares=bytes(65535) + b"\1")
        assert file_size(largest) == 9 + 7 + 32768 + 65536 * 2 + 4
        assert container.MAX_FILE_SIZE == 33_554_452 + 32_768

    def test_a_long_file_carries_a_crc_32(self):
        longest_short = Header(256, 256, 7, 11, 53, 8, 0, b"\xab\xcd")
        shortest_long = Header(256, 256, 2, 13, 157, 8, 0, b"\xab\xcd")
        assert len(pack(longest_short, indices(longest_short))) == file_size(longest_short) == 4095
        assert len(pack(shortest_long, indices(shortest_long))) == file_size(shortest_long) == 4098

    def test_known_models_say_whether_they_are_nested(self):
        assert NANO.nested is True
        assert Header(256, 256, 1, 1, 32, 12, 2, b"ab").nested is False
        assert Header(256, 256, 1, 1, 32, 12, 0, b"ab").nested is False
        assert (NANO.model, CUSTOM.model) == ("nano-1", "custom")


class TestShares:
    """Tiles with unequal numbers of tokens: version 2."""

    def test_they_follow_the_grid_and_the_tiles_take_turns_by_them(self):
        assert pack(SHARED, SHARED_INDICES) == SHARED_BYTES
        assert unpack(SHARED_BYTES) == (SHARED, SHARED_INDICES)
        assert list(tile_order(SHARED)) == [0, 1, 2, 3, 0, 0, 1, 0, 1, 2]
        assert (SHARED.counts, SHARED.indices, SHARED.payload_bytes, SHARED.version) == ((4, 3, 2, 1), 10, 15, 2)

    def test_an_odd_number_of_tiles_fills_the_last_byte(self):
        header = Header(300, 200, 1, 3, 2, 8, 0, b"\xab\xcd", nested=True, shares=b"\x0f\x00\x04")
        data = bytes.fromhex("f5746f6b 54 00 01 abcd 87 12b0c7 0002 f040 010203 04 284d")
        assert pack(header, [1, 2, 3, 4]) == data
        assert unpack(data) == (header, [1, 2, 3, 4])
        assert list(tile_order(header)) == [0, 1, 2, 1]

    def test_without_shares_it_is_version_1_in_its_order(self):
        assert (TILED.counts, TILED.indices, TILED.version) == ((3, 3, 3), 9, 1)
        assert list(tile_order(TILED)) == [0, 1, 2] * 3

    def test_every_4_halve_the_tokens_and_1_is_the_least(self):
        assert possible_counts(128) == [128, 107, 90, 76, 64, 53, 45, 38, 32, 26, 22, 19, 16, 13, 11, 9]
        assert possible_counts(8) == [8, 6, 5, 4, 4, 3, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1]
        assert possible_counts(1) == [1] * 16

    def test_with_one_token_more_every_tile_has_none_or_one_more(self):
        for tokens in range(1, 256):
            more = zip(possible_counts(tokens + 1), possible_counts(tokens), strict=True)
            assert {after - before for after, before in more} <= {0, 1}

    def test_each_rule_has_its_own_error(self):
        def changed(*changes: tuple[int, int]) -> bytes:
            body = bytearray(SHARED_BYTES)
            for at, value in changes:
                body[at] = value
            return bytes(body)

        odd = bytes.fromhex("f5746f6b 54 00 01 abcd 87 12b0c7 0002 f041 010203 04 0000")
        cases = {
            changed((4, 0x40)): (VersionError, "byte 4: found 2 without tiles, expected 1, or 2 with tiles"),
            changed((4, 0x64)): (VersionError, "byte 4: found 3, expected 1, or 2 with tiles"),
            changed((4, 0x46)): (ReservedBitsError, "byte 4: found 10, expected 00"),
            changed((5, 2), (6, 31)): (TokenCountError, "byte 4: found 2, expected 1 for a model whose codes are not"),
            changed((9, 0), (10, 0)): (NonCanonicalError, "found 1x1"),
            changed((11, 0), (12, 0)): (NonCanonicalError, "byte 11: all are 0, which is stored as version 1"),
            changed((11, 0x21)): (NonCanonicalError, "byte 11: the least is 1, expected 0"),
            odd: (ReservedBitsError, "byte 16: found 0001, expected 0000"),
            SHARED_BYTES[:12]: (TruncatedError, "found 12 bytes, expected at least 13"),
        }
        for data, (error, message) in cases.items():
            for partial in (False, True):
                with pytest.raises(error, match=message):
                    unpack(data, partial=partial)

    def test_the_limit_counts_the_tokens_that_are_there(self):
        assert unpack(SHARED_BYTES, limits=Limits(max_indices=10))[0] == SHARED
        with pytest.raises(LimitExceededError, match="10 tokens in 4 tiles; the limit is 9 in all"):
            unpack(SHARED_BYTES, limits=Limits(max_indices=9))

    def test_a_cut_file_gives_the_most_tokens_whose_indices_are_all_there(self):
        held = {15: (4, 10), 14: (3, 7), 11: (3, 7), 10: (2, 5), 8: (2, 5), 7: (1, 4), 6: (1, 4)}
        for cut, (tokens, count) in held.items():
            found = unpack(SHARED_BYTES[: 13 + cut], partial=True)
            assert found == (replace(SHARED, tokens_per_tile=tokens), SHARED_INDICES[:count])
            assert examine(SHARED_BYTES[: 13 + cut], partial=True) == (SHARED, tokens, False)
        with pytest.raises(TruncatedError, match="no token of every tile is left: found 5 payload bytes, needed 6"):
            unpack(SHARED_BYTES[:18], partial=True)

    def test_truncating_keeps_the_shares(self):
        for tokens, count in {3: 7, 2: 5, 1: 4}.items():
            cut = truncate(SHARED_BYTES, tokens)
            assert cut == pack(replace(SHARED, tokens_per_tile=tokens), SHARED_INDICES[:count])
            assert cut[7:13] == SHARED_BYTES[7:13]
        assert truncate(SHARED_BYTES, 4) == SHARED_BYTES

    def test_wrong_numbers_of_indices_are_refused(self):
        with pytest.raises(UsageError, match="16 indices for 4 tiles of at most 4 tokens: expected 10"):
            pack(SHARED, [0] * 16)


class TestPackRefuses:
    @pytest.mark.parametrize(
        "change",
        [
            {"width": 0},
            {"width": 65537},
            {"height": -1},
            {"rows": 0},
            {"rows": 257},
            {"rows": 2, "height": 1},
            {"columns": 5, "width": 4},
            {"tokens_per_tile": 0},
            {"tokens_per_tile": 129},
            {"tokens_per_tile": 31, "model_id": 2, "nested": False},
            {"bits_per_index": 13},
            {"bits_per_index": 17, "model_id": 0},
            {"nested": False},
            {"model_id": max(KNOWN_MODELS) + 1},
            {"model_id": -1},
            {"fingerprint": b"\xab"},
            {"fingerprint": bytes(32)},
            {"shares": b"\0"},
            {"shares": b"\0\1"},
            {"shares": b"\0\1\4", "columns": 2},
            {"shares": b"\0\x10", "columns": 2},
            {"shares": b"\0\0", "columns": 2},
            {"shares": b"\1\2", "columns": 2},
            {"shares": b"\0\1", "columns": 2, "model_id": 0, "nested": False},
            {"shares": b"\0\1", "columns": 2, "model_id": 2, "nested": False, "tokens_per_tile": 32},
        ],
        ids=str,
    )
    def test_headers_that_the_format_cannot_hold(self, change):
        header = replace(NANO, **change)
        with pytest.raises(UsageError):
            pack(header, [0] * header.indices)
        with pytest.raises(UsageError):
            file_size(header)

    @pytest.mark.parametrize("wrong", [NANO_INDICES[:3], [*NANO_INDICES, 0], [4096, 0, 0, 0], [0, -1, 0, 0]], ids=str)
    def test_indices_that_do_not_fit_the_header(self, wrong):
        with pytest.raises(UsageError):
            pack(NANO, wrong)


class TestCorruption:
    @pytest.mark.parametrize("header", [CUSTOM, replace(NANO, tokens_per_tile=32)], ids=["60 bytes", "59 bytes"])
    def test_every_1_and_2_bit_flip_is_refused(self, header):
        data = pack(header, indices(header))
        number, size = int.from_bytes(data, "big"), len(data)
        masks = [1 << bit for bit in range(size * 8)]
        accepted = []
        for mask in [*masks, *(a | b for a, b in combinations(masks, 2))]:
            try:
                unpack((number ^ mask).to_bytes(size, "big"))
            except ContainerError:
                continue
            accepted.append(mask)
        assert accepted == []

    @pytest.mark.parametrize("header", [CUSTOM, TILED, NANO, SHARED], ids=["custom", "tiled", "nano", "shared"])
    def test_every_1_bit_flip_every_truncation_and_every_extension_is_refused(self, header):
        data = pack(header, indices(header))
        for at in range(len(data)):
            with pytest.raises(TruncatedError if at >= 4 else MagicError):
                unpack(data[:at])
            for bit in range(8):
                with pytest.raises(ContainerError):
                    unpack(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
        for extra in range(256):
            with pytest.raises(TrailingDataError):
                unpack(data + bytes([extra]))
        for length in range(2, 300):
            with pytest.raises(TrailingDataError):
                unpack(data + bytes(length))

    def test_the_crc_16_finds_two_flipped_bits_at_any_distance_in_a_short_file(self):
        """Two flips at distance d go unseen only if the polynomial divides x**d + 1."""
        power, order = 2, 1
        while power != 1:
            power <<= 1
            power ^= 0x11021 if power >> 16 else 0
            order += 1
        assert order == 32767 >= container.SHORT_FILE_SIZE * 8

    def test_the_crc_32_does_in_any_file(self):
        """x has the order 2**32 - 1 modulo the polynomial: no divisor of that will do."""

        def multiply(a: int, b: int) -> int:
            product = 0
            while b:
                product ^= a if b & 1 else 0
                a <<= 1
                a ^= 0x104C11DB7 if a >> 32 else 0
                b >>= 1
            return product

        def power_of_x(exponent: int) -> int:
            result, square = 1, 2
            while exponent:
                result = multiply(result, square) if exponent & 1 else result
                square = multiply(square, square)
                exponent >>= 1
            return result

        order = 2**32 - 1
        assert order > container.MAX_FILE_SIZE * 8
        assert power_of_x(order) == 1
        assert all(power_of_x(order // prime) != 1 for prime in (3, 5, 17, 257, 65537))

    def test_flips_in_a_long_file_are_refused(self):
        header = Header(256, 256, 2, 13, 157, 8, 0, b"\xab\xcd")
        data = pack(header, indices(header))
        for at in range(len(data)):
            with pytest.raises(ContainerError):
                unpack(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])

    def test_each_rule_has_its_own_error(self):
        cases = {
            b"": MagicError,
            b"\x89PNG\r\n\x1a\n": MagicError,
            b"\xf5tok\x40" + NANO_BYTES[5:]: VersionError,
            NANO_BYTES[:5] + b"\xff" + NANO_BYTES[6:]: UnknownModelError,
            NANO_BYTES[:-1]: TruncatedError,
            NANO_BYTES + b"\n": TrailingDataError,
            NANO_BYTES[:-1] + b"\x00": ChecksumError,
        }
        for data, error in cases.items():
            with pytest.raises(error):
                unpack(data)
            with pytest.raises(error):
                read_header(data)

    def test_messages_say_found_expected_and_where(self):
        with pytest.raises(ChecksumError, match=r"^checksum at byte 15: found c2fe, expected c265$"):
            unpack(NANO_BYTES[:-1] + b"\xfe")
        with pytest.raises(TruncatedError, match=r"^file is cut short: found 16 bytes, expected 17$"):
            unpack(NANO_BYTES[:-1])
        with pytest.raises(MagicError, match=r"^not a \.tok file: it starts with 47 49 46 38, expected f5 74 6f 6b$"):
            unpack(b"GIF89a")
        with pytest.raises(
            GridError, match=r"byte 11: found 3 rows and 1 columns, expected at most .* 2 and 256 pixels$"
        ):
            unpack(bytes.fromhex("f5746f6b 2c 01 1f abcd ff01 0200"))

    def test_what_follows_a_file_is_named(self):
        for rest, follows in {b"\r\n": "line ends", bytes(3): "zeros", b"\0x": "other bytes"}.items():
            with pytest.raises(TrailingDataError, match=f"expected 17; {follows} follow it$"):
                unpack(NANO_BYTES + rest)

    @pytest.mark.parametrize("text", [to_text(NANO_BYTES), "\r\n" + to_text(NANO_BYTES), to_text(NANO_BYTES)[:9]])
    def test_a_file_as_base64_text_is_named(self, text):
        with pytest.raises(MagicError, match=r"^not a \.tok file: it is one as base64 text, make it a file again"):
            unpack(text.encode())

    def test_base64_text_is_named(self):
        with pytest.raises(MagicError, match=r"it looks like base64 text, which --base64 decodes$"):
            unpack(to_text(pack_indices(range(100, 132), 12)).encode())

    def test_any_bytes_like_data_will_do(self):
        assert unpack(bytearray(NANO_BYTES)) == unpack(memoryview(NANO_BYTES)) == (NANO, NANO_INDICES)


class TestLimits:
    @pytest.mark.parametrize("size", [(65535, 65535), (16385, 1), (1, 16385), (9460, 9459)])
    def test_sizes_beyond_the_defaults_are_refused_until_allowed(self, size):
        header = replace(NANO, width=size[0], height=size[1])
        data = pack(header, NANO_INDICES)
        with pytest.raises(LimitExceededError, match=f"{size[0]}x{size[1]}"):
            unpack(data)
        with pytest.raises(LimitExceededError):
            read_header(data)
        assert unpack(data, limits=Limits(max_pixels=1 << 32, max_side=65536)) == (header, NANO_INDICES)

    def test_too_many_indices_are_refused_until_allowed(self):
        header = Header(256, 256, 3, 3, 200, 1, 0, b"\xab\xcd")
        data = pack(header, indices(header))
        with pytest.raises(LimitExceededError, match="9 tiles of 200 tokens; the limit is 1799 in all"):
            unpack(data, limits=Limits(max_indices=1799))
        assert unpack(data, limits=Limits(max_indices=1800))[0] == header

    def test_hostile_headers_cost_under_10_ms_and_1_mb(self):
        measured = json.loads(
            python(
                """
                import binascii, json, resource, time, tracemalloc, zlib
                from titokc.container import SHORT_FILE_SIZE, Header, pack, read_header, unpack
                from titokc.errors import TitokcError

                def signed(body):
                    if len(body) + 2 <= SHORT_FILE_SIZE:
                        return body + binascii.crc_hqx(body, 0xFFFF).to_bytes(2, "big")
                    return body + zlib.crc32(body).to_bytes(4, "big")

                huge = Header(65535, 65535, 1, 1, 32, 12, 1, b"ab")
                fixed = bytes.fromhex("f5746f6b 3c 00 ff abcd 0f ffffffff ffff")
                shares = bytes.fromhex("f5746f6b 5c 00 ff abcd 8f ffffffff ffff 0f" + "ff" * 32767)
                hostile = {
                    "63 bytes, 65535x65535": pack(huge, [0] * 32),
                    "65536 tiles of 256 tokens, no payload": signed(fixed + bytes(50)),
                    "as many in 1 bit each, all there": signed(fixed[:9] + bytes([0]) + fixed[10:] + bytes(1 << 21)),
                    "nearly all there": signed(fixed)[:-2] + bytes((1 << 25) - 1),
                    "not a .tok": bytes(1 << 20),
                    "65536 shares, no payload": signed(shares + bytes(50)),
                    "65536 shares and their tokens": signed(shares + bytes(2490842)),
                }
                for data in hostile.values():
                    for partial in (False, True):
                        try:
                            unpack(data, partial=partial)
                            raise SystemExit("accepted")
                        except TitokcError:
                            pass
                with open("/proc/self/statm") as file:
                    in_use = int(file.read().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (in_use + (8 << 20), -1))
                resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
                result = {}
                for name, data in hostile.items():
                    for partial in (False, True):
                        for read in (unpack, read_header):
                            times = []
                            tracemalloc.start()
                            for _ in range(3):
                                start = time.process_time()
                                try:
                                    read(data, partial=partial)
                                except TitokcError as error:
                                    raised = type(error).__name__
                                times.append(time.process_time() - start)
                            peak = tracemalloc.get_traced_memory()[1]
                            tracemalloc.stop()
                            result[f"{name}, {partial=}, {read.__name__}"] = [min(times), peak, raised]
                print(json.dumps(result))
                """
            )
        )
        assert {name: row for name, row in measured.items() if row[0] > 0.010 or row[1] > 1_000_000} == {}
        assert {row[2] for row in measured.values()} == {"LimitExceededError", "TruncatedError", "MagicError"}


class TestPartial:
    def test_a_cut_may_leave_some_tiles_one_token_more_which_is_dropped(self):
        data = pack(TILED, TILED_INDICES)
        payload = 14
        for cut, tokens in {14: 3, 13: 2, 9: 2, 8: 1, 5: 1}.items():
            header, found = unpack(data[: payload + cut], partial=True)
            assert header == replace(TILED, tokens_per_tile=tokens)
            assert found == TILED_INDICES[: 3 * tokens]
        for cut in (4, 1, 0):
            with pytest.raises(TruncatedError, match="no token of every tile is left"):
                unpack(data[: payload + cut], partial=True)

    def test_a_cut_header_is_refused(self):
        data = pack(TILED, TILED_INDICES)
        for length in range(14):
            with pytest.raises(TruncatedError if length >= 4 else MagicError):
                unpack(data[:length], partial=True)

    def test_only_the_checksum_is_missing(self):
        assert unpack(NANO_BYTES[:-1], partial=True) == unpack(NANO_BYTES[:-2], partial=True) == (NANO, NANO_INDICES)
        odd = replace(NANO, tokens_per_tile=3)
        data = pack(odd, NANO_INDICES[:3])[:-2]
        with pytest.raises(PaddingError):
            unpack(data[:-1] + bytes([data[-1] | 1]), partial=True)

    def test_whole_data_is_checked_in_full(self):
        assert unpack(NANO_BYTES, partial=True) == (NANO, NANO_INDICES)
        with pytest.raises(ChecksumError):
            unpack(NANO_BYTES[:-1] + b"\x00", partial=True)
        with pytest.raises(TrailingDataError):
            unpack(NANO_BYTES + b"\x00", partial=True)

    def test_examining_says_what_is_there_and_what_was_checked(self):
        assert examine(NANO_BYTES) == examine(NANO_BYTES, partial=True) == (NANO, 4, True)
        found = {length: examine(NANO_BYTES[:length], partial=True)[1:] for length in range(9, 17)}
        no = False
        assert found == {9: (0, no), 10: (0, no), 11: (1, no), 12: (2, no), 13: (2, no), 14: (3, no)} | {
            15: (4, no),
            16: (4, no),
        }
        assert examine(NANO_BYTES[:12], partial=True).header == NANO
        with pytest.raises(TruncatedError):
            examine(NANO_BYTES[:12])

    def test_read_header_gives_what_was_declared(self):
        assert read_header(NANO_BYTES[:12], partial=True).tokens_per_tile == 4
        assert unpack(NANO_BYTES[:12], partial=True)[0].tokens_per_tile == 2
        with pytest.raises(TruncatedError):
            read_header(NANO_BYTES[:12])

    def test_models_with_one_length_may_be_cut_at_this_level(self):
        header = Header(256, 256, 1, 1, 32, 12, 2, b"\xab\xcd")
        data = pack(header, indices(header))
        assert unpack(data[:12], partial=True) == (replace(header, tokens_per_tile=2), indices(header)[:2])


class TestTruncate:
    def test_it_is_the_file_of_the_first_tokens(self):
        data = pack(TILED, TILED_INDICES)
        for tokens in (1, 2):
            assert truncate(data, tokens) == pack(replace(TILED, tokens_per_tile=tokens), TILED_INDICES[: 3 * tokens])
        assert truncate(data, 3) == data
        assert truncate(truncate(data, 2), 1) == truncate(data, 1)

    def test_it_agrees_with_a_cut_stream(self):
        data = pack(CUSTOM, indices(CUSTOM))
        for tokens in range(1, 33):
            assert unpack(truncate(data, tokens)) == unpack(data[: 10 + tokens * 12 // 8 + 1], partial=True)

    @pytest.mark.parametrize("tokens", [0, -1, 4 + 1])
    def test_counts_that_are_not_there(self, tokens):
        with pytest.raises(UsageError, match="the file has 4"):
            truncate(NANO_BYTES, tokens)

    def test_models_with_one_length_are_refused_by_name(self):
        header = Header(256, 256, 1, 1, 32, 12, 2, b"\xab\xcd")
        with pytest.raises(UsageError, match="cannot truncate a file of titok-l-32: its 32 tokens are one code"):
            truncate(pack(header, indices(header)), 31)

    def test_pictures_beyond_the_limits_of_pixels_can_be_cut(self):
        header = replace(NANO, width=65536, height=65536)
        assert len(truncate(pack(header, NANO_INDICES), 2)) == 18
        with pytest.raises(LimitExceededError, match=r"4 tokens; the limit is 3 in all$"):
            truncate(NANO_BYTES, 2, limits=Limits(max_indices=3))

    def test_a_corrupt_file_is_refused(self):
        with pytest.raises(ChecksumError):
            truncate(NANO_BYTES[:-1] + b"\x00", 2)


class TestProcess:
    def test_it_refuses_under_python_o_too(self):
        code = f"""
            from titokc import container
            from titokc.errors import ContainerError, UsageError
            good = bytes.fromhex("{NANO_BYTES.hex()}")
            for at in range(len(good)):
                for bad in (good[:at], good[:at] + bytes([good[at] ^ 1]) + good[at + 1:]):
                    try:
                        container.unpack(bad)
                        raise SystemExit("accepted")
                    except ContainerError:
                        pass
            header, indices = container.unpack(good)
            for wrong in ([4096] * 4, [0] * 3):
                try:
                    container.pack(header, wrong)
                    raise SystemExit("packed")
                except UsageError:
                    pass
            print("refused", __debug__)
            """
        assert python(code, "-O") == "refused False\n"
