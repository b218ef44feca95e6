"""Published test vectors against the primitives under CES, sealing, signing, key derivation and pairing.

Those of NIST, RFC 7748, RFC 5869 and of Ed25519's authors come with the package cryptography_vectors; those of project
Wycheproof lie outside the repository, and where their folder is missing the tests say so and are skipped.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cryptography_vectors
import pytest
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl import bindings
from nacl.exceptions import BadSignatureError, CryptoError
from py_arkworks_bls12381 import G2Point

from crypto import ces
from crypto.errors import Malformed
from crypto.group import G1, G1_GENERATOR, G2, pairing_product
from crypto.sign import SigningKey

VECTORS = Path(__file__).parents[2].parent / "shared" / "data" / "vectors"
wycheproof = pytest.mark.skipif(not VECTORS.is_dir(), reason="the folder of Wycheproof's vectors is not here")


def cases(name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    groups = json.loads((VECTORS / name).read_text())["testGroups"]
    return [(group, case) for group in groups for case in group["tests"]]


def unhex(case: dict[str, Any], *names: str) -> list[bytes]:
    return [bytes.fromhex(case[name]) for name in names]


@wycheproof
def test_aes_gcm_with_96_bit_nonces_opens_and_seals_as_wycheproof_says() -> None:
    seen = 0
    for group, case in cases("aes_gcm_test.json"):
        if group["ivSize"] != 96 or group["tagSize"] != 128:
            continue
        seen += 1
        key, nonce, aad, message, ciphertext, tag = unhex(case, "key", "iv", "aad", "msg", "ct", "tag")
        if case["result"] == "valid":
            assert AESGCM(key).encrypt(nonce, message, aad) == ciphertext + tag, case["tcId"]
            assert AESGCM(key).decrypt(nonce, ciphertext + tag, aad) == message, case["tcId"]
        else:
            with pytest.raises(InvalidTag):
                AESGCM(key).decrypt(nonce, ciphertext + tag, aad)
    assert seen > 150


@wycheproof
def test_ed25519_verification_agrees_with_wycheproof() -> None:
    seen = 0
    for group, case in cases("ed25519_test.json"):
        seen += 1
        public = bytes.fromhex(group["publicKey"]["pk"])
        message, signature = unhex(case, "msg", "sig")
        try:
            # libsodium takes signature and message as one string, so only a 64-byte signature is itself
            valid = len(signature) == 64 and bindings.crypto_sign_open(signature + message, public) == message
        except BadSignatureError:
            valid = False
        assert valid == (case["result"] == "valid"), case["tcId"]
    assert seen == 151


@wycheproof
def test_rsa_pss_3072_verification_agrees_with_wycheproof() -> None:
    seen = 0
    for group, case in cases("rsa_pss_3072_sha256_mgf1_32_test.json"):
        seen += 1
        public = bytes.fromhex(group["publicKeyDer"])
        message, signature = unhex(case, "msg", "sig")
        assert ces._rsa_is_valid(public, message, signature) == (case["result"] == "valid"), case["tcId"]
    assert seen == 108


@wycheproof
def test_hkdf_sha256_derives_as_wycheproof_says() -> None:
    seen = 0
    for _, case in cases("hkdf_sha256_test.json"):
        seen += 1
        ikm, salt, info = unhex(case, "ikm", "salt", "info")
        if case["result"] == "valid":
            derived = HKDF(SHA256(), case["size"], salt, info).derive(ikm)
            assert derived == bytes.fromhex(case["okm"]), case["tcId"]
        else:
            with pytest.raises(ValueError, match="8160"):
                HKDF(SHA256(), case["size"], salt, info)
    assert seen == 86


def x25519(private: bytes, public: bytes) -> bytes:
    return bindings.crypto_scalarmult(private, public)


@wycheproof
def test_x25519_agrees_with_wycheproof_and_refuses_points_of_low_order() -> None:
    seen = refused = 0
    for _, case in cases("x25519_test.json"):
        seen += 1
        private, public, shared = unhex(case, "private", "public", "shared")
        if shared == bytes(32):
            refused += 1
            with pytest.raises(CryptoError):
                x25519(private, public)
        else:
            assert x25519(private, public) == shared, case["tcId"]
    assert (seen, refused) == (518, 31)


@wycheproof
def test_hashing_to_g2_agrees_with_wycheproof() -> None:
    seen = 0
    for group, case in cases("bls_hash_to_g2_test.json"):
        seen += 1
        point = G2Point.hash_to_curve(bytes.fromhex(case["msg"]), group["dst"].encode())
        assert G2.from_bytes(bytes(point.to_compressed_bytes())).to_bytes().hex() == case["expected"]
    assert seen == 34


@wycheproof
def test_points_and_pairings_verify_bls_signatures_as_wycheproof_says() -> None:
    """The product only, put together here: what is tested is which bytes are points of G1 and G2, and the pairing."""
    results = []
    for group, case in cases("bls_sig_g2_basic_verify_test.json"):
        try:
            key, signature = (
                G1.from_bytes(bytes.fromhex(group["publicKey"]["pk"])),
                G2.from_bytes(bytes.fromhex(case["sig"])),
            )
            hashed = G2Point.hash_to_curve(bytes.fromhex(case["msg"]), group["ciphersuite"].encode())
            message = G2.from_bytes(bytes(hashed.to_compressed_bytes()))
            valid = pairing_product([(key, message)]) == pairing_product([(G1_GENERATOR, signature)])
        except Malformed:
            valid = False
        assert valid == (case["result"] == "valid"), case["tcId"]
        results.append(valid)
    assert (len(results), sum(results)) == (88, 29)


# --- vectors in the package cryptography_vectors


def entries(path: str, last: str = "") -> Iterator[dict[str, str]]:
    """The entries of a file of NIST or in its manner, as `name = value` lines, each with what was said before it, such as
    [Keylen = 256] or a modulus. An entry ends with a blank line, or with the line named `last`."""
    known: dict[str, str] = {}
    entry: dict[str, str] = {}
    with cryptography_vectors.open_vector_file(path, "r") as file:
        for line in map(str.strip, [*file, ""]):
            name, _, value = (word.strip() for word in line.strip("[]").partition("="))
            if line.startswith("["):
                known[name] = value
            elif name and not name.startswith("#"):
                entry[name] = value
            if entry and name == last:
                yield known | entry
                if entry.keys() <= {"n", "p", "q"}:
                    known |= entry
                entry = {}


@pytest.mark.parametrize("size", [128, 192, 256])
def test_aes_gcm_opens_what_nist_says_and_nothing_else(size: int) -> None:
    opened = refused = 0
    for case in entries(f"ciphers/AES/GCM/gcmDecrypt{size}.rsp"):
        if case.get("IVlen") != "96" or case.get("Taglen") != "128" or "Key" not in case:
            continue
        key, nonce, aad, ciphertext, tag = unhex(case, "Key", "IV", "AAD", "CT", "Tag")
        if "FAIL" in case:
            refused += 1
            with pytest.raises(InvalidTag):
                AESGCM(key).decrypt(nonce, ciphertext + tag, aad)
        else:
            opened += 1
            message = bytes.fromhex(case["PT"])
            assert AESGCM(key).decrypt(nonce, ciphertext + tag, aad) == message
            assert AESGCM(key).encrypt(nonce, message, aad) == ciphertext + tag
    assert opened + refused == 375
    assert refused > 100


def test_rsa_pss_3072_with_sha256_verifies_what_nist_says_and_nothing_else() -> None:
    results = []
    for case in entries("asymmetric/RSA/FIPS_186-2/SigVerPSS_186-3.rsp"):
        if case.get("mod") != "3072" or case.get("SHAAlg") != "SHA256":
            continue
        public = RSAPublicNumbers(int(case["e"], 16), int(case["n"], 16)).public_key()
        salt, signature, message = unhex(case, "SaltVal", "S", "Msg")
        pss = padding.PSS(padding.MGF1(SHA256()), salt_length=len(salt))
        try:
            public.verify(signature, message, pss, SHA256())
            results.append(True)
        except InvalidSignature:
            results.append(False)
        assert results[-1] == case["Result"].startswith("P"), case
    assert (len(results), sum(results)) == (18, 3)


def test_hkdf_derives_as_rfc_5869_says() -> None:
    seen = 0
    for path in ("KDF/rfc-5869-HKDF-SHA256.txt", "KDF/hkdf-generated.txt"):
        for case in entries(path, last="OKM"):
            seen += 1
            ikm, salt, info, okm = unhex(case, "IKM", "salt", "info", "OKM")
            assert HKDF(SHA256(), int(case["L"]), salt, info).derive(ikm) == okm
    assert seen == 4


def test_x25519_multiplies_as_rfc_7748_says() -> None:
    seen = 0
    for case in entries("asymmetric/X25519/rfc7748.txt", last="OUTPUT_U"):
        seen += 1
        scalar, u, expected = unhex(case, "INPUT_SCALAR", "INPUT_U", "OUTPUT_U")
        assert x25519(scalar, u) == expected
    assert seen == 3


def test_ed25519_signs_and_verifies_as_its_authors_say() -> None:
    with cryptography_vectors.open_vector_file("asymmetric/Ed25519/sign.input", "r") as file:
        lines = [[bytes.fromhex(field) for field in line.split(":")[:4]] for line in file]
    assert len(lines) == 1024
    for secret, public, message, signed in lines:
        key = SigningKey(secret[:32])
        assert key.public == public
        assert bindings.crypto_sign(message, key._secret) == signed[:64] + message
        assert bindings.crypto_sign_open(signed, public) == message
