"""How fast content extraction signatures are and how large extracts are, beside SD-JWT in the same run.

Both issue a record of n parts of 100 characters with the same six facts about it in the clear, disclose some parts, and verify
what was disclosed. Every step starts and ends with what travels: ours encodes and decodes, the peer (PyPI sd-jwt) serialises and
parses. Overhead is all that travels besides the disclosed parts themselves: for ours the encoded extract and the tags of the
disclosed parts. Disclosed parts are spread evenly, which makes an opening in a tree as large as it gets.

    python -m bench.crypto --only ces
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from bench.lines import Line, Peer, Sample, measure
from crypto import ces
from crypto.codec import encode
from crypto.commitvector import Form

SIZES = ((9, 4), (100, 33), (1000, 333), (1000, 1))
"""Parts of a record, and how many of them are disclosed."""
GOALS = {"sign": 80.0, "extract": 15.0, "verify": 120.0}
"""In us, for Ed25519 and 9 parts."""
PEER = "sd-jwt"
RECORD, PATIENT, DOCTOR, TIME, PROFILE = (
    os.urandom(16),
    os.urandom(32),
    os.urandom(32),
    1_790_000_000_000,
    "safe",
)


@dataclass(frozen=True)
class Steps:
    """What a doctor, a patient and a reader do with one record, and the bytes that travel besides the disclosed parts."""

    sign: Callable[[], object]
    extract: Callable[[], object]
    verify: Callable[[], object]
    overhead: int


def lines(seconds: float = 0.5) -> Iterator[Line]:
    """Measure everything, each operation for about `seconds`."""
    for suite, algorithm in ((ces.ED25519, "EdDSA"), (ces.RSA_PSS, "PS256")):
        for count, disclosed in SIZES:
            messages = [os.urandom(50).hex().encode() for _ in range(count)]
            keep = [i * count // disclosed for i in range(disclosed)]
            peer = _peer(algorithm, messages, keep) if find_spec("sd_jwt") else None
            forms: tuple[Form, ...] = ("flat", "merkle") if count >= ces.MERKLE_FROM else ("flat",)
            for form in forms:
                ours = _ours(suite, form, messages, keep)
                name = f"{suite.removeprefix('ces-').removesuffix('-sha256')}, {form}, {len(keep)} of {count} parts"
                yield from _compare(name, ours, peer, count == 9 and suite == ces.ED25519, seconds)


def _compare(name: str, ours: Steps, peer: Steps | None, has_goals: bool, seconds: float) -> Iterator[Line]:
    for step in ("sign", "extract", "verify"):
        yield Line(
            f"{step}: {name}",
            "us",
            measure(getattr(ours, step), "us", seconds),
            Peer(PEER, measure(getattr(peer, step), "us", seconds).median, "this run") if peer else None,
            GOALS[step] if has_goals else None,
        )
    seen = Peer(PEER, peer.overhead, "this run") if peer else None
    yield Line(f"overhead: {name}", "bytes", Sample.size(ours.overhead), seen)


def _ours(suite: str, form: Form, messages: list[bytes], keep: list[int]) -> Steps:
    signer = ces.CesSigner.generate(suite)

    def sign() -> bytes:
        full = ces.sign(
            messages,
            signer,
            record=RECORD,
            patient=PATIENT,
            doctor=DOCTOR,
            created_ms=TIME,
            profile=PROFILE,
            form=form,
        )
        return encode(full)

    issued = sign()
    full = ces.decode_full(issued)
    shown = encode(full.extract(full.commitments(messages), keep))
    parts = {i: (full.tag(i), messages[i]) for i in keep}

    def extract() -> bytes:
        received = ces.decode_full(issued)
        return encode(received.extract(received.commitments(messages), keep))

    return Steps(
        sign,
        extract,
        lambda: ces.verify(ces.decode_extract(shown), parts, (suite, signer.public)),
        len(shown) + sum(len(tag) for tag, _ in parts.values()),
    )


def _peer(algorithm: str, messages: list[bytes], keep: list[int]) -> Steps:
    from jwcrypto.jwk import JWK  # type: ignore[import-untyped]
    from sd_jwt.common import SDObj  # type: ignore[import-untyped]
    from sd_jwt.holder import SDJWTHolder  # type: ignore[import-untyped]
    from sd_jwt.issuer import SDJWTIssuer  # type: ignore[import-untyped]
    from sd_jwt.verifier import SDJWTVerifier  # type: ignore[import-untyped]

    key = (
        JWK.generate(kty="OKP", crv="Ed25519") if algorithm == "EdDSA" else JWK.generate(kty="RSA", size=3072)
    )
    public = JWK.from_json(key.export_public())
    about = {"iss": DOCTOR.hex(), "sub": PATIENT.hex(), "jti": RECORD.hex(), "iat": TIME, "profile": PROFILE}
    claims: dict[Any, Any] = about | {"count": len(messages)}
    claims |= {SDObj(f"m{i}"): message.decode() for i, message in enumerate(messages)}
    wanted = {f"m{i}": True for i in keep}

    def sign() -> str:
        return str(SDJWTIssuer(claims, key, sign_alg=algorithm).sd_jwt_issuance)

    issued = sign()

    def extract() -> str:
        holder = SDJWTHolder(issued)
        holder.create_presentation(wanted)
        return str(holder.sd_jwt_presentation)

    shown = extract()

    def verify() -> dict[str, object]:
        return dict(SDJWTVerifier(shown, lambda _issuer, _header: public).get_verified_payload())

    opened = verify()
    assert {name for name in opened if name.startswith("m")} == wanted.keys()
    return Steps(sign, extract, verify, len(shown) - sum(len(messages[i]) for i in keep))
