"""Published test vectors (project Wycheproof) against the primitives under CES, sealing and key derivation.

They lie outside the repository; where the folder is missing the tests say so and are skipped.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl import bindings
from nacl.exceptions import BadSignatureError

from crypto import ces

VECTORS = Path(__file__).parents[2].parent / "shared" / "data" / "vectors"

pytestmark = pytest.mark.skipif(not VECTORS.is_dir(), reason="the folder of published vectors is not here")


def cases(name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    groups = json.loads((VECTORS / name).read_text())["testGroups"]
    return [(group, case) for group in groups for case in group["tests"]]


def unhex(case: dict[str, Any], *names: str) -> list[bytes]:
    return [bytes.fromhex(case[name]) for name in names]


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


def test_rsa_pss_3072_verification_agrees_with_wycheproof() -> None:
    seen = 0
    for group, case in cases("rsa_pss_3072_sha256_mgf1_32_test.json"):
        seen += 1
        public = bytes.fromhex(group["publicKeyDer"])
        message, signature = unhex(case, "msg", "sig")
        assert ces._rsa_is_valid(public, message, signature) == (case["result"] == "valid"), case["tcId"]
    assert seen == 108


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
