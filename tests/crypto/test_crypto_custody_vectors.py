"""Known answers of guardians' shares, jointly issued keys and the ceremony that makes the joint key.

`tests/vectors/custody.json` has what another implementation needs to check itself. All of it follows from the seeds in it:

    python -m tests.crypto.test_crypto_custody_vectors --regenerate
"""

import hashlib
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

from crypto import fabeo, guardians
from crypto.dkg import HolderKey
from crypto.guardians import Share, split_secret
from crypto.schemes import read_attributes
from crypto.sign import SigningKey
from crypto.split import IssuerKey, JointKey
from protocol.ceremony import ROUNDS, Ceremony

VECTORS = Path(__file__).parents[1] / "vectors" / "custody.json"
ATTRIBUTES = ["org:st-mary", "status:active@2026w47"]


def stream(seed: str) -> Callable[[int], bytes]:
    """Random bytes that are the same everywhere: SHAKE256 of the seed and a counter."""
    counter = itertools.count()
    return lambda size: hashlib.shake_256(f"{seed} {next(counter)}".encode()).digest(size)


# --- making the answers


def split(seed: str, labels: list[str], needed: int) -> dict:
    random = stream(seed)
    secret = random(32)
    shares = split_secret(secret, labels, needed, random)
    listed = [{"number": share.number, "label": share.label, "text": share.to_text()} for share in shares]
    return {
        "seed": seed,
        "secret": secret.hex(),
        "needed": needed,
        "set": guardians.set_name(shares[0].set_id),
        "shares": listed,
    }


def ceremony(seed: str, count: int, threshold: int) -> dict:
    """Every word of a ceremony, what its members keep, and a key that the first ones issue."""
    random = stream(seed)
    keys = [SigningKey.generate(random) for _ in range(count)]
    members = [(f"authority-{number}", key.public) for number, key in enumerate(keys, 1)]
    holders = [HolderKey.generate(random) for _ in keys]
    everybody = [
        Ceremony(b"network", members, threshold, key, holder, random)
        for key, holder in zip(keys, holders, strict=True)
    ]
    rounds = []
    for _ in range(ROUNDS):
        words = [member.say() for member in everybody]
        for member, (author, word) in itertools.product(everybody, enumerate(words)):
            member.take(author, word)
        rounds.append([word.hex() for word in words])
    issuers = [member.outcome() for member in everybody]
    parts = {issuer.number: issuer.issue(ATTRIBUTES, random) for issuer in issuers[:threshold]}
    return {
        "seed": seed,
        "purpose": b"network".hex(),
        "threshold": threshold,
        "members": [key.public.hex() for key in keys],
        "piece_keys": [holder.to_bytes().hex() for holder in holders],
        "rounds": rounds,
        "kept": [issuer.to_bytes().hex() for issuer in issuers],
        "joint": issuers[0].joint.to_bytes().hex(),
        "public": issuers[0].joint.public.to_bytes().hex(),
        "parts": {str(number): part.to_bytes().hex() for number, part in parts.items()},
        "key": issuers[0].joint.combine(parts).to_bytes().hex(),
    }


def answers() -> dict:
    return {
        "guardians": [split("two", ["", ""], 2), split("five", ["Bob", "Žofie", "Carol", "Dave", "Eve"], 3)],
        "ceremonies": [ceremony("pair", 2, 2), ceremony("three", 3, 2)],
    }


# --- checking them


KNOWN = json.loads(VECTORS.read_text()) if VECTORS.exists() else {}


def test_the_known_answers_are_ours_byte_for_byte():
    assert answers() == KNOWN


def by_the_documents(text: str) -> tuple[int, int, int, bytes]:
    """Needed, number, total and value of a printed share, without the code under test: RFC 4648's bit order, Crockford's letters."""
    mark, *groups = text.split()
    assert mark == "DIPTYCH-SHARE-1"
    letters = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    bits = "".join(f"{letters.index(c):05b}" for group in groups for c in group[:-1])
    data = int(bits[: len(bits) // 8 * 8], 2).to_bytes(len(bits) // 8, "big")
    assert hashlib.sha256(b"diptych/1/guardian-share\0" + data[:-4]).digest()[:4] == data[-4:]
    return data[5], data[7], data[6], data[8:48]


def product(a: int, b: int) -> int:
    """In GF(2^8) with the polynomial of AES, from the definition."""
    total = 0
    for bit in range(8):
        if b >> bit & 1:
            total ^= a << bit
    for bit in range(14, 7, -1):
        if total >> bit & 1:
            total ^= 0x11B << (bit - 8)
    return total


def test_the_known_shares_give_their_secret_by_lagranges_formula():
    for known in KNOWN["guardians"]:
        read = [by_the_documents(share["text"]) for share in known["shares"]][: known["needed"]]
        assert {needed for needed, *_ in read} == {known["needed"]}
        values = {number: value for _, number, _, value in read}
        secret = bytearray(40)
        for x, value in values.items():
            weight = 1
            for other in values:
                if other != x:
                    inverse = next(i for i in range(256) if product(i, x ^ other) == 1)
                    weight = product(weight, product(other, inverse))
            secret = bytearray(s ^ product(v, weight) for s, v in zip(secret, value, strict=True))
        assert secret[:32].hex() == known["secret"]
        assert [Share.from_text(s["text"]).label for s in known["shares"]] == [
            s["label"] for s in known["shares"]
        ]


def test_the_known_joint_keys_and_parts_hold():
    for known in KNOWN["ceremonies"]:
        joint = JointKey.from_bytes(bytes.fromhex(known["joint"]))
        parts = {int(number): read_attributes(bytes.fromhex(part)) for number, part in known["parts"].items()}
        for number, part in parts.items():
            joint.check(number, part, ATTRIBUTES)
        assert joint.combine(parts).to_bytes().hex() == known["key"]
        assert isinstance(joint.public, fabeo.PublicKey)
        assert joint.public.to_bytes().hex() == known["public"]
        for number, kept in enumerate(known["kept"]):
            assert IssuerKey.from_bytes(bytes.fromhex(kept)).number == number


if __name__ == "__main__" and sys.argv[1:] == ["--regenerate"]:
    VECTORS.write_text(json.dumps(answers(), indent=1, ensure_ascii=False) + "\n")
