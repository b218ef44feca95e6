"""Known answers of content extraction signatures, and a verifier of them written from the documents alone.

`tests/vectors/ces.json` has everything that another implementation needs to check itself. All of it follows from the seeds in it:

    python -m tests.crypto.test_crypto_ces_vectors --regenerate
"""

import hashlib
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from struct import pack
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from crypto import ceas, ces
from crypto.codec import encode
from crypto.commitvector import Form
from crypto.errors import Denied
from crypto.sign import SigningKey

VECTORS = Path(__file__).parents[1] / "vectors" / "ces.json"
NAMES = {f"m{i}": (i,) for i in range(64)}


def stream(seed: str) -> Callable[[int], bytes]:
    """Random bytes that are the same everywhere: SHAKE256 of the seed and a counter."""
    counter = itertools.count()
    return lambda size: hashlib.shake_256(f"{seed} {next(counter)}".encode()).digest(size)


# --- making the answers


class SeededRsa:
    """An RSA signer whose key and salts follow from a seed; RSASSA-PSS straight from RFC 8017, sections 8.1.1 and 9.1.1."""

    suite = ces.RSA_PSS

    def __init__(self, seed: str) -> None:
        self._random = stream(seed)
        self.p, self.q = prime(self._random), prime(self._random)
        self.n = self.p * self.q
        self.d = pow(65537, -1, math.lcm(self.p - 1, self.q - 1))
        self.public = ces._rsa_public_bytes(rsa.RSAPublicNumbers(65537, self.n).public_key())

    def sign(self, payload: bytes) -> bytes:
        salt = self._random(32)
        digest = hashlib.sha256(b"diptych/1/ces\0" + payload).digest()
        h = hashlib.sha256(bytes(8) + digest + salt).digest()
        block = b"\x01" + salt
        block = block.rjust(384 - 33, b"\0")
        blocks = -(-len(block) // 32)
        mask = b"".join(hashlib.sha256(h + pack(">I", i)).digest() for i in range(blocks))[: len(block)]
        masked = bytes(a ^ b for a, b in zip(block, mask, strict=True))
        encoded = bytes([masked[0] & 0x7F]) + masked[1:] + h + b"\xbc"
        return pow(int.from_bytes(encoded, "big"), self.d, self.n).to_bytes(384, "big")


def prime(random: Callable[[int], bytes]) -> int:
    """A prime of 1536 bits, its two highest bits set."""
    product = math.prod(n for n in range(3, 2000) if all(n % k for k in range(2, math.isqrt(n) + 1)))
    while True:
        n = int.from_bytes(random(192), "big") | 3 << 1534 | 1
        if math.gcd(n, product) == 1 and n % 65537 != 1 and all(pow(a, n - 1, n) == 1 for a in (2, 3, 5, 7)):
            return n


@cache
def signer(suite: str) -> Any:
    if suite == ces.RSA_PSS:
        return SeededRsa("ces rsa key")
    return ces.CesSigner(SigningKey(stream("ces ed25519 key")(32)))


def answer(
    suite: str, form: Form, count: int, rules: Iterable[str], selections: Iterable[Iterable[int]]
) -> dict:
    seed = f"{suite} {form} {count}"
    random = stream(seed)
    record, patient, doctor = random(16), random(32), random(32)
    messages = [random(17 * i) for i in range(count)]
    key = signer(suite)
    full = ces.sign(
        messages,
        key,
        record=record,
        patient=patient,
        doctor=doctor,
        created_ms=1_790_000_000_000,
        profile="paper",
        rules=[ceas.parse(rule, NAMES, count) for rule in rules],
        form=form,
        random=random,
    )
    extracts: list[dict[str, Any]] = []
    for keep in map(list, selections):
        try:
            extracts.append(
                {"keep": keep, "extract": encode(full.extract(full.commitments(messages), keep)).hex()}
            )
        except Denied:
            extracts.append({"keep": keep, "extract": None})
    secret = {"p": hex(key.p), "q": hex(key.q)} if suite == ces.RSA_PSS else {"seed": key._key.seed.hex()}
    return {
        "seed": seed,
        "suite": suite,
        "form": form,
        "rules": list(rules),
        "secret": secret,
        "public": key.public.hex(),
        "messages": [message.hex() for message in messages],
        "tags": [full.tag(i).hex() for i in range(count)],
        "root": full.header.root.hex(),
        "full": encode(full).hex(),
        "extracts": extracts,
    }


PARTED = ((0,), (8,), (1, 2, 3, 4, 5, 6), (0, 7), range(9))
RULES = ("together(m1, m2)", "never(m8)", "if(any(m3, m4), least(2, m0, m5, all(m1, m2)))")


def answers() -> list[dict]:
    return [
        answer(ces.ED25519, "flat", 1, (), [[0]]),
        answer(ces.ED25519, "merkle", 1, (), [[0]]),
        answer(ces.ED25519, "flat", 9, (), PARTED),
        answer(ces.ED25519, "merkle", 9, (), PARTED),
        answer(ces.ED25519, "flat", 9, RULES, (*PARTED, (1,), (1, 2), (3,), (0, 3, 5))),
        answer(ces.ED25519, "merkle", 45, RULES[:1], [[0], [44], [3, 40], range(2, 43, 3), range(16)]),
        answer(ces.RSA_PSS, "flat", 9, (), PARTED),
        answer(ces.RSA_PSS, "merkle", 33, (), [[32], [5, 6], range(33)]),
    ]


# --- checking them from the documents


def by_the_documents(
    extract: bytes, parts: dict[int, tuple[bytes, bytes]], suite: str, public: bytes
) -> list[Any]:
    """The header of an extract that verifies; AssertionError or InvalidSignature if it does not. None of our code."""
    header, selection, hashes, signature = msgpack.unpackb(extract)
    assert msgpack.packb([header, selection, hashes, signature]) == extract
    found_suite, form, record, _, _, _, _, count, _, root = header
    assert found_suite == suite
    kept = [i for i in range(8 * len(selection)) if selection[i // 8] >> i % 8 & 1]
    assert selection[-1]
    assert kept == sorted(parts)
    assert kept[-1] < count
    rest = [hashes[i : i + 32] for i in range(0, len(hashes), 32)]
    level: list[bytes | None] = [None] * count
    for i, (tag, message) in parts.items():
        level[i] = hashlib.sha256(
            b"diptych/1/ces-part\0" + record + pack(">I", i) + tag + pack(">Q", len(message)) + message
        ).digest()
    if form == "flat":
        row = [node or rest.pop(0) for node in level]
        top = hashlib.sha256(b"diptych/1/ces-flat\0" + b"".join(row)).digest()
    else:
        while len(level) > 1:
            above: list[bytes | None] = []
            for left, right in itertools.zip_longest(level[::2], level[1::2], fillvalue=b""):
                if right == b"":
                    above.append(left)
                elif left is None and right is None:
                    above.append(None)
                else:
                    pair = [left or rest.pop(0), right or rest.pop(0)]
                    above.append(hashlib.sha256(b"diptych/1/ces-node\0" + pair[0] + pair[1]).digest())
            level = above
        assert level[0]
        top = level[0]
    assert not rest
    assert top == root
    signed = b"diptych/1/ces\0" + msgpack.packb(header)
    if suite == "ces-ed25519-sha256":
        Ed25519PublicKey.from_public_bytes(public).verify(signature, signed)
    else:
        key = load_der_public_key(public)
        assert isinstance(key, rsa.RSAPublicKey)
        key.verify(signature, signed, padding.PSS(padding.MGF1(SHA256()), salt_length=32), SHA256())
    return header


def opened(known: dict, keep: Iterable[int]) -> dict[int, tuple[bytes, bytes]]:
    return {i: (bytes.fromhex(known["tags"][i]), bytes.fromhex(known["messages"][i])) for i in keep}


KNOWN = json.loads(VECTORS.read_text()) if VECTORS.exists() else []
each = pytest.mark.parametrize("known", KNOWN, ids=lambda known: f"{known['seed'][4:]} {len(known['rules'])}")


def test_the_known_answers_are_ours_byte_for_byte() -> None:
    assert answers() == KNOWN


@each
def test_the_known_answers_verify_by_the_documents_alone(known: dict) -> None:
    suite, public = known["suite"], bytes.fromhex(known["public"])
    for case in known["extracts"]:
        if case["extract"] is not None:
            header = by_the_documents(
                bytes.fromhex(case["extract"]), opened(known, case["keep"]), suite, public
            )
            assert header[-1].hex() == known["root"]
            assert header[:2] == [suite, known["form"]]


@each
def test_the_known_answers_verify_and_the_refused_selections_are_refused(known: dict) -> None:
    suite, public = known["suite"], bytes.fromhex(known["public"])
    messages = [bytes.fromhex(message) for message in known["messages"]]
    full = ces.decode_full(bytes.fromhex(known["full"]))
    commitments = full.commitments(messages)
    ces.verify_full(full, commitments, suite, public)
    assert [ceas.text(rule, len(messages), lambda i: f"m{i}") for rule in full.header.rules] == known["rules"]
    for case in known["extracts"]:
        if case["extract"] is None:
            with pytest.raises(Denied):
                full.extract(commitments, case["keep"])
        else:
            extract = ces.decode_extract(bytes.fromhex(case["extract"]))
            ces.verify(extract, opened(known, case["keep"]), (suite, public))
    assert any(case["extract"] is None for case in known["extracts"]) == bool(known["rules"])


if __name__ == "__main__" and sys.argv[1:] == ["--regenerate"]:
    VECTORS.parent.mkdir(exist_ok=True)
    VECTORS.write_text(json.dumps(answers(), indent=1) + "\n")
