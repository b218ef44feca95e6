"""Known answers for every wire object of CP-ABE, so that another implementation can be built against them.

All of them follow from a seed: the n-th draw of `size` bytes is SHAKE256("<seed> <n>"), n from 0. After a change of the
format that is meant, write them anew: `python -m tests.crypto.test_crypto_abe_vectors --regenerate`.
"""

import hashlib
import json
import sys
from pathlib import Path

import pytest

from crypto.abe import decapsulate, encapsulate
from crypto.epoch import asked, held
from crypto.policy import parse
from crypto.schemes import SCHEMES, read_attributes, read_master, read_public

VECTORS = Path(__file__).parents[1] / "vectors" / "abe.json"
HOLDERS = {
    "a doctor": ["role:doctor", "org:st-mary"],
    "an active researcher": ["role:researcher", "status:active@2026w47"],
}
POLICIES = [
    "role:doctor",
    "role:doctor and org:st-mary",
    "(org:st-mary or role:nurse) and role:doctor or role:government",
    "role:doctor and (org:st-mary or role:doctor)",
    "2 of (role:doctor, org:st-mary, role:nurse, role:doctor and org:general)",
    "role:researcher and status:active@2026w40",
    "3 of (role:researcher, status:active@2026w47, org:lab, role:researcher)",
]


def drawing(seed):
    drawn = iter(range(1 << 30))
    return lambda size: hashlib.shake_256(f"{seed} {next(drawn)}".encode()).digest(size)


def vectors():
    made = {"policies": [], "weeks": [], "schemes": []}
    for text in POLICIES:
        policy = parse(text)
        made["policies"].append({"text": text, "canonical": str(policy), "leaves": list(policy.leaves)})
    for name in (
        "status:active@2020w01",
        "status:active@2026w47",
        "status:active@2026w53",
        "status:active@2097w52",
    ):
        made["weeks"].append({"attribute": name, "asked": list(asked(name)), "held": list(held(name))})
    for scheme, kinds in SCHEMES.items():
        seed = f"diptych {scheme}"
        master = kinds.master.generate(drawing(f"{seed} master"))
        keys = {who: master.issue(names, drawing(f"{seed} {who}")) for who, names in HOLDERS.items()}
        headers = []
        for number, text in enumerate(POLICIES):
            context = f"context {number}".encode()
            header, key = encapsulate(master.public, text, context, drawing(f"{seed} header {number}"))
            opens = [who for who, holder in keys.items() if parse(text).satisfied(holder.attributes)]
            headers.append(
                {
                    "seed": f"{seed} header {number}",
                    "policy": text,
                    "context": context.hex(),
                    "header": header.hex(),
                    "key": key.hex(),
                    "opened_by": opens,
                }
            )
        made["schemes"].append(
            {
                "suite": master.suite,
                "seed": f"{seed} master",
                "master_key": master.to_bytes().hex(),
                "public_key": master.public.to_bytes().hex(),
                "fingerprint": master.public.fingerprint.hex(),
                "attribute_keys": [
                    {
                        "seed": f"{seed} {who}",
                        "holder": who,
                        "attributes": HOLDERS[who],
                        "key": keys[who].to_bytes().hex(),
                    }
                    for who in HOLDERS
                ],
                "headers": headers,
            }
        )
    return made


KNOWN = json.loads(VECTORS.read_text()) if VECTORS.exists() else {"schemes": []}


def test_what_is_made_today_is_what_the_vectors_say():
    assert vectors() == KNOWN, "if it is meant: python -m tests.crypto.test_crypto_abe_vectors --regenerate"


@pytest.mark.parametrize("known", KNOWN["schemes"], ids=lambda known: known["suite"])
def test_the_objects_of_the_vectors_decode_and_open(known):
    master, public = (
        read(bytes.fromhex(known[name]))
        for read, name in ((read_master, "master_key"), (read_public, "public_key"))
    )
    assert master.public.fingerprint == public.fingerprint == bytes.fromhex(known["fingerprint"])
    holders = {key["holder"]: read_attributes(bytes.fromhex(key["key"])) for key in known["attribute_keys"]}
    for sealed in known["headers"]:
        header, context = bytes.fromhex(sealed["header"]), bytes.fromhex(sealed["context"])
        for who in sealed["opened_by"]:
            opened = decapsulate(public, holders[who], sealed["policy"], header, context)
            assert opened == bytes.fromhex(sealed["key"])
    assert {who for sealed in known["headers"] for who in sealed["opened_by"]} == set(HOLDERS)


if __name__ == "__main__":
    if sys.argv[1:] != ["--regenerate"]:
        sys.exit(f"usage: python -m {__spec__.name} --regenerate")
    VECTORS.parent.mkdir(exist_ok=True)
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
