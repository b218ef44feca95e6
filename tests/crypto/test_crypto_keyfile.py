"""Key files, seen by their owner, by who steals one and by who plants a hostile one."""

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto import keyfile
from crypto.codec import encode
from crypto.errors import Denied, DiptychError, Malformed

SECRET = b"the secret of the key file"
PLAIN, ARGON2 = "diptych-key/plain", "diptych-key/argon2id+aes-256-gcm"


@pytest.fixture(scope="module")
def sealed() -> bytes:
    return keyfile.seal(SECRET, b"correct horse")


def test_the_passphrase_opens_what_it_sealed(sealed: bytes) -> None:
    assert keyfile.open_sealed(sealed, b"correct horse") == SECRET


def test_a_sealed_file_does_not_show_the_secret_and_is_salted(sealed: bytes) -> None:
    assert SECRET not in sealed
    assert keyfile.seal(SECRET, b"correct horse") != sealed


def test_a_sealed_file_costs_a_guesser_64_mib_and_three_passes(sealed: bytes) -> None:
    suite, (memory_kib, passes, lanes, salt), _ = msgspec.msgpack.decode(sealed)
    assert (suite, memory_kib, passes, lanes, len(salt)) == (ARGON2, 65536, 3, 1, 16)


def test_the_format_is_pinned_to_the_documented_layout() -> None:
    kdf = (65536, 3, 1, bytes(16))
    key = Argon2id(salt=bytes(16), length=32, iterations=3, lanes=1, memory_cost=65536).derive(b"phrase")
    body = bytes(12) + AESGCM(key).encrypt(bytes(12), SECRET, encode(kdf))
    assert keyfile.seal(SECRET, b"phrase", random=bytes) == encode((ARGON2, kdf, body))


@pytest.mark.parametrize("wrong", [b"Correct horse", b"correct horse ", b"", b"\0"])
def test_a_wrong_passphrase_is_denied_with_advice(sealed: bytes, wrong: bytes) -> None:
    with pytest.raises(Denied, match="check it"):
        keyfile.open_sealed(sealed, wrong)


def test_a_sealed_file_without_a_passphrase_is_denied(sealed: bytes) -> None:
    with pytest.raises(Denied, match="none was given"):
        keyfile.open_sealed(sealed, None)


@given(secret=st.binary(max_size=3000))
def test_a_plain_file_opens_without_a_passphrase(secret: bytes) -> None:
    assert keyfile.open_sealed(keyfile.seal(secret, None), None) == secret


def test_a_plain_file_put_in_place_of_a_sealed_one_is_noticed() -> None:
    with pytest.raises(Denied, match="replaced"):
        keyfile.open_sealed(keyfile.seal(b"planted", None), b"correct horse")


def test_an_empty_passphrase_is_refused_rather_than_pretended() -> None:
    with pytest.raises(Malformed, match="empty"):
        keyfile.seal(SECRET, b"")


def test_an_oversized_secret_is_refused() -> None:
    assert keyfile.open_sealed(keyfile.seal(bytes(keyfile.MAX_SECRET), None), None)
    with pytest.raises(Malformed, match="limit"):
        keyfile.seal(bytes(keyfile.MAX_SECRET + 1), None)


@pytest.mark.parametrize(
    "kdf",
    [
        (100 << 20, 3, 1, bytes(16)),
        ((256 << 10) + 1, 3, 1, bytes(16)),
        (1, 3, 1, bytes(16)),
        (65536, 17, 1, bytes(16)),
        (65536, 2**40, 1, bytes(16)),
        (65536, 0, 1, bytes(16)),
        (65536, 3, 9, bytes(16)),
        (65536, 3, 0, bytes(16)),
        (65536, 3, 1, b""),
    ],
)
def test_a_hostile_file_cannot_demand_memory_or_time(
    kdf: tuple[int, int, int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def derived(**_: object) -> None:
        raise AssertionError("the key derivation was started")

    monkeypatch.setattr(keyfile, "Argon2id", derived)
    with pytest.raises(Malformed):
        keyfile.open_sealed(encode((ARGON2, kdf, bytes(40))), b"passphrase")


@pytest.mark.parametrize(
    "file",
    [
        ("diptych-key/rot13", None, b"x"),
        (PLAIN, (8192, 1, 1, bytes(16)), b"x"),
        (ARGON2, None, bytes(40)),
        (ARGON2, (8192, 1, 1, bytes(16)), bytes(27)),
        (PLAIN, None),
        (PLAIN, None, b"x", b"y"),
        (PLAIN, None, "text"),
    ],
)
def test_a_file_of_another_form_is_malformed(file: tuple[object, ...]) -> None:
    with pytest.raises(Malformed):
        keyfile.open_sealed(encode(file), b"passphrase")


def test_weakened_parameters_do_not_open_a_file(sealed: bytes) -> None:
    suite, (_, passes, lanes, salt), body = msgspec.msgpack.decode(sealed)
    with pytest.raises(Denied):
        keyfile.open_sealed(encode((suite, (8192, passes, lanes, salt), body)), b"correct horse")


@settings(max_examples=200)
@given(data=st.data())
def test_a_damaged_plain_file_never_ends_in_a_traceback(data: st.DataObject) -> None:
    wire = bytearray(keyfile.seal(SECRET, None))
    at = data.draw(st.integers(0, len(wire) - 1))
    wire[at] ^= data.draw(st.integers(1, 255))
    changed, refusal, opened = bytes(wire), "", bytes(len(SECRET))
    try:
        opened = keyfile.open_sealed(changed, None)
    except DiptychError as error:
        refusal = str(error)
    assert "secret of" not in refusal
    assert len(opened) == len(SECRET), "only a byte of the unprotected secret itself may differ"


def test_trailing_bytes_and_truncation_are_malformed(sealed: bytes) -> None:
    for good in (sealed, keyfile.seal(SECRET, None)):
        for bad in (good + b"\0", good[:-1], b""):
            with pytest.raises(Malformed):
                keyfile.open_sealed(bad, b"correct horse")


def test_every_part_of_the_sealed_body_is_authenticated(sealed: bytes) -> None:
    for at in (-1, -20, -len(SECRET) - 20):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(Denied):
            keyfile.open_sealed(bytes(changed), b"correct horse")
