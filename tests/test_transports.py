"""`titokc decode` of payloads as radio, mail, shells and databases deliver them, and of one form given as another."""

import base64
import random

import pytest
from click.testing import CliRunner

from titokc.cli import main
from titokc.payload import pack_bare, to_text, unpack_bare

# Any 192 bytes are 128 tokens of the model.
FRAME = random.Random(1).randbytes(192)
TEXT = to_text(FRAME).encode()
# A file of 63 tokens has 108 bytes, and 108 bytes are 72 tokens too.
TOK = b"\xf5tok\x28" + FRAME[:103]


@pytest.fixture
def decode(tmp_path, tiny, monkeypatch):
    """Gives the exit code, the message, and the picture as PNG."""
    monkeypatch.setattr("titokc.weights.load", lambda name, device: tiny)

    def run(data, *options):
        (tmp_path / "in").write_bytes(data)
        result = CliRunner().invoke(main, ["decode", str(tmp_path / "in"), *options, "-o", "-", "-q"])
        return result.exit_code, result.stderr, result.stdout_bytes

    return run


def payload_of(tokens):
    """The first tokens of the frame, as a payload of their own."""
    return pack_bare(unpack_bare(FRAME, 12)[:tokens], 12)


@pytest.mark.parametrize(
    ("data", "options", "tokens"),
    [
        (FRAME, ["--bare"], 128),
        (TEXT, ["--base64"], 128),
        (FRAME[:95], ["--bare", "--partial"], 63),
        (TEXT[:101], ["--base64", "--partial"], 50),
        (b"\r\n".join(TEXT[at : at + 76] for at in range(0, 256, 76)) + b"\r\n", ["--base64"], 128),
        (base64.urlsafe_b64encode(payload_of(33)), ["--base64"], 33),
    ],
)
def test_what_arrives_is_decoded(decode, data, options, tokens):
    code, message, picture = decode(data, *options)
    assert (code, message) == (0, "")
    assert picture == decode(payload_of(tokens), "--bare")[2] != b""


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (TOK, ["--bare"], "this is a .tok file, not a bare payload: leave out --bare"),
        (TOK, ["--base64"], "this is a .tok file, not base64 text: leave out --base64"),
        (to_text(TOK).encode(), [], "not a .tok file: it is one as base64 text"),
        (TEXT, [], "not a .tok file: it looks like base64 text, which --base64 decodes"),
        (FRAME, ["--base64"], "character 0 of the base64 text"),
        (FRAME + b"\n", ["--bare"], "bare payload is too long: found 193 bytes, expected 192; line ends follow it"),
        (b"", ["--bare", "--partial"], "no whole token is left"),
    ],
)
def test_what_is_no_such_payload_is_refused_by_name(decode, data, options, message):
    code, found, picture = decode(data, *options)
    assert (code, picture) == (3, b"")
    assert f": {message}" in found
    assert len(found.splitlines()) == 1


@pytest.mark.parametrize("option", ["--bare", "--base64"])
@pytest.mark.parametrize("partial", [[], ["--partial"]])
def test_limits_hold_for_payloads_too(decode, option, partial):
    code, message, _ = decode(FRAME if option == "--bare" else TEXT, option, "--max-indices", "127", *partial)
    assert code == 6
    assert "the payload holds 128 tokens; the limit is 127 (--max-indices allows more)" in message
