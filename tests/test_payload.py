"""The payload alone, as bytes and as base64 text: literal forms, cuts, what is mistaken for another form, limits."""

import base64
import random
import tracemalloc

import pytest

from titokc.errors import LimitExceededError, UsageError
from titokc.limits import Limits
from titokc.payload import (
    FormError,
    IndexRangeError,
    PaddingError,
    TextError,
    TrailingDataError,
    TruncatedError,
    check_indices,
    is_tok,
    pack_bare,
    to_text,
    unpack_bare,
    unpack_text,
)

INDICES = [0x123, 0x456, 0x789, 0xABC]
BARE = bytes.fromhex("123456789abc")
TEXT = "EjRWeJq8"
# What a radio link carries: any 192 bytes are 128 indices of 12 bits.
FRAME = random.Random(1).randbytes(192)
FRAME_INDICES = unpack_bare(FRAME, 12)
# The start of a file of 63 tokens at 108 bytes, and 108 bytes are 72 indices too.
TOK = b"\xf5tok\x28" + FRAME[:103]


class TestBare:
    def test_the_payload_alone(self):
        assert pack_bare(INDICES, 12) == BARE
        assert unpack_bare(BARE, 12) == INDICES
        assert len(pack_bare(range(32), 12)) == 48
        assert unpack_bare(b"", 12) == []

    def test_lengths_that_no_count_gives(self):
        with pytest.raises(TrailingDataError):
            unpack_bare(bytes(4), 12)
        with pytest.raises(TruncatedError):
            unpack_bare(bytes(4), 12, count=3)
        with pytest.raises(TrailingDataError):
            unpack_bare(bytes(4), 12, count=1)
        with pytest.raises(PaddingError):
            unpack_bare(b"\x00\x01", 12)

    def test_what_follows_a_payload_is_named(self):
        with pytest.raises(
            TrailingDataError, match=r"^bare payload is too long: found 193 bytes, expected 192; line ends"
        ):
            unpack_bare(FRAME + b"\n", 12)
        with pytest.raises(TrailingDataError, match=r"found 200 bytes, expected 192; zeros follow it$"):
            unpack_bare(FRAME + bytes(8), 12, count=128)

    def test_small_indices_need_the_count(self):
        assert unpack_bare(b"\x12\x30", 4, count=3) == [1, 2, 3]
        with pytest.raises(UsageError, match="say how many"):
            unpack_bare(b"\x12\x30", 4)

    @pytest.mark.parametrize("bits", [0, 17])
    def test_bits_out_of_range(self, bits):
        for read in (lambda: pack_bare([0], bits), lambda: unpack_bare(b"\0", bits), lambda: unpack_text("AA", bits)):
            with pytest.raises(UsageError):
                read()

    def test_cut_anywhere_its_whole_indices_are_there(self):
        assert unpack_bare(FRAME[:94] + b"\x1f", 12, partial=True) == [*FRAME_INDICES[:62], FRAME[93] << 4 | 1]
        for length in range(2, 193):
            assert unpack_bare(FRAME[:length], 12, partial=True) == FRAME_INDICES[: length * 8 // 12]
        assert unpack_bare(FRAME + b"\n", 12, 128, partial=True) == FRAME_INDICES
        for length in (0, 1):
            with pytest.raises(TruncatedError, match="no whole token is left"):
                unpack_bare(FRAME[:length], 12, partial=True)


class TestText:
    def test_literally(self):
        assert to_text(b"\xfb\xff\xfe\x00") == "-__-AA"
        assert unpack_text("-__-AA", 8) == [0xFB, 0xFF, 0xFE, 0x00]
        assert len(to_text(bytes(48))) == 64
        assert unpack_text("", 12) == []
        assert to_text(BARE) == TEXT
        assert unpack_text(TEXT, 12) == unpack_text(TEXT.encode(), 12) == INDICES

    @pytest.mark.parametrize(
        "text",
        ["-__-AA==", "+//+AA", "+//+AA==", "-__-AA\n", "-__-\r\nAA=\r\n", " -_ _-\tAA ", "-__-AA="],
        ids=["padded", "standard", "both", "line end", "wrapped", "spaced", "one sign of padding lost"],
    )
    def test_ways_in_which_text_arrives(self, text):
        assert unpack_text(text, 8) == unpack_text(text.encode(), 8) == [0xFB, 0xFF, 0xFE, 0x00]

    def test_wrapped_at_76_characters_as_mail_does(self):
        text = to_text(FRAME)
        wrapped = "".join(f"{text[at : at + 76]}\r\n" for at in range(0, len(text), 76))
        assert unpack_text(wrapped, 12) == FRAME_INDICES
        assert unpack_text(base64.encodebytes(FRAME), 12) == FRAME_INDICES

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("-_*-AA", "character 2 of the base64 text: found '*', which is none of base64's"),
            ("-__-A%3D", "character 5 of the base64 text: found '%', which is none of base64's"),
            ("-__-Aé", "character 5 of the base64 text: found 'é', which is none of base64's; --bare"),
            ("-__-\r\nA.", "character 7 of the base64 text: found '.'"),
            ("-_=_-AA", "character 2 of the base64 text: found '=', which may only stand at its end"),
            ("-__+AA", "character 3 of the base64 text: found '+', but '-' before it is of the other alphabet"),
            ("+/A_AA", "character 3 of the base64 text: found '_', but '+' before it is of the other alphabet"),
            ("-__-AB", "character 5 of the base64 text, the last: found 'B' with unused bits set"),
            ("-__-\nAB==\n", "character 6 of the base64 text, the last: found 'B' with unused bits set"),
            ("-__-A", "base64 text of 5 characters: one is missing, or one too many"),
        ],
    )
    def test_what_is_no_text_of_bytes_is_refused_with_its_place(self, text, message):
        with pytest.raises(TextError) as caught:
            unpack_text(text, 12)
        assert str(caught.value).startswith(message)

    def test_cut_anywhere_its_whole_indices_are_there(self):
        text = to_text(FRAME)
        assert unpack_text(text[:101], 12, partial=True) == FRAME_INDICES[:50]
        for length in range(2, len(text) + 1):
            assert unpack_text(text[:length], 12, partial=True) == FRAME_INDICES[: length // 2]
        assert unpack_text("\n".join(text[:102]), 12, partial=True) == FRAME_INDICES[:51]
        with pytest.raises(TruncatedError, match="found 6 bits, a token has 12"):
            unpack_text("A", 12, partial=True)
        with pytest.raises(TextError, match="character 3 "):
            unpack_text("EjR*", 12, partial=True)


class TestOtherForms:
    """What one form is when it is read as another one says its name and how to read it."""

    @pytest.mark.parametrize("partial", [False, True])
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (TOK, "this is a .tok file, not a bare payload: leave out --bare"),
            (TOK[:60], "this is a .tok file, not a bare payload: leave out --bare"),
            (to_text(TOK).encode(), "this is a .tok file in base64: make it a file again (base64 -d)"),
            (to_text(FRAME[:54]).encode(), "this looks like base64 text, not a bare payload: --base64 instead"),
            (base64.b64encode(FRAME[:54]), "this looks like base64 text"),
            (base64.encodebytes(FRAME), "this looks like base64 text"),
            (to_text(FRAME[:15]).encode(), "this looks like base64 text"),
        ],
        ids=["file", "cut file", "file as text", "text", "standard text", "wrapped text", "short text"],
    )
    def test_as_bare(self, data, message, partial):
        with pytest.raises(FormError) as caught:
            unpack_bare(data, 12, partial=partial)
        assert str(caught.value).startswith(message)

    @pytest.mark.parametrize("partial", [False, True])
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (TOK, "this is a .tok file, not base64 text: leave out --base64"),
            (to_text(TOK).encode(), "this is a .tok file in base64: make it a file again (base64 -d)"),
            (base64.encodebytes(TOK), "this is a .tok file in base64"),
            (to_text(TOK)[:50].encode(), "this is a .tok file in base64"),
        ],
        ids=["file", "file as text", "file as wrapped text", "cut text of a file"],
    )
    def test_as_text(self, data, message, partial):
        with pytest.raises(FormError) as caught:
            unpack_text(data, 12, partial=partial)
        assert str(caught.value).startswith(message)

    def test_files_of_version_2_are_files_and_have_tiles(self):
        for flags, whether in {0x44: True, 0x5C: True, 0x40: False, 0x46: False, 0x64: False}.items():
            assert is_tok(b"\xf5tok" + bytes([flags])) == whether
        with pytest.raises(FormError, match=r"this is a \.tok file, not a bare payload"):
            unpack_bare(b"\xf5tok\x44\x01", 12)

    @pytest.mark.parametrize("partial", [False, True])
    def test_a_bare_payload_as_text(self, partial):
        with pytest.raises(TextError, match=r"; --bare reads payloads that are no text$"):
            unpack_text(FRAME, 12, partial=partial)

    def test_nothing_is_written_that_would_not_be_read(self):
        for payload in (TOK[:60], to_text(FRAME[:54]).encode()):
            number = int.from_bytes(payload, "big")
            indices = [number >> at & 0xFFF for at in range(len(payload) * 8 - 12, -1, -12)]
            with pytest.raises(UsageError, match="write another form"):
                pack_bare(indices, 12)

    def test_even_payloads_are_no_text(self):
        """Flat pictures repeat a few indices, which may be letters of base64 by chance."""
        for payload in (b"A" * 48, b"ABC" * 16, b"titokc" * 8):
            assert pack_bare(unpack_bare(payload, 12), 12) == payload


class TestLimits:
    def test_they_come_before_anything_is_unpacked(self):
        data = bytes(3 << 20)
        text = to_text(data)
        for read in (lambda partial: unpack_bare(data, 12, partial=partial), lambda _: unpack_bare(data, 12, 1 << 21)):
            tracemalloc.start()
            for partial in (False, True):
                with pytest.raises(LimitExceededError, match=r"2097152 tokens; the limit is 1048576"):
                    read(partial)
            assert tracemalloc.get_traced_memory()[1] < 100_000
            tracemalloc.stop()
        for partial in (False, True):
            with pytest.raises(LimitExceededError, match="2097152 tokens"):
                unpack_text(text, 12, partial=partial)

    def test_they_can_be_raised(self):
        assert unpack_bare(BARE, 12, limits=Limits(max_indices=4)) == INDICES
        assert unpack_text(TEXT, 12, limits=Limits(max_indices=4)) == INDICES
        for partial in (False, True):
            with pytest.raises(LimitExceededError):
                unpack_bare(BARE, 12, partial=partial, limits=Limits(max_indices=3))
            with pytest.raises(LimitExceededError):
                unpack_text(TEXT, 12, partial=partial, limits=Limits(max_indices=3))
        assert unpack_bare(BARE, 12, count=3, partial=True, limits=Limits(max_indices=3)) == INDICES[:3]


def test_indices_that_the_model_lacks_are_refused_with_their_place():
    check_indices(INDICES, 0xABD)
    check_indices([], 1)
    with pytest.raises(IndexRangeError, match=r"^index 2748 at position 3: expected 0\.\.2747 for this model$"):
        check_indices(INDICES, 0xABC)
    assert IndexRangeError.exit_code == 3
