"""How a person gets the key to their certified attributes: a part from each of enough authorities, every part checked.

No single one of several authorities is believed. Enough of them must give the same joint public key, so an honest one does; and each part must
fit its issuer's public key in it. Who does not answer or cheats is named, and not needed if enough others are there.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import httpx2

from client.enrolment import Issued, KeyRequest, KeyRequestBody, decode_issued
from client.web import checked, http_client, now_ms
from crypto.abe import AttributeKey, PublicKey
from crypto.codec import encode
from crypto.errors import Conflict, DiptychError, NotFound, Unauthentic, Unavailable
from crypto.schemes import read_attributes
from crypto.seal import SealKey
from crypto.sign import Ed25519Signer
from crypto.split import JointKey
from protocol.identity import SignedCredential
from protocol.network import Network, Service

ANSWER_S = 15
"""Seconds for one authority, which may have to wait until the chains agree about the credential."""
GRACE_S = 2
"""Seconds for the others once there is a key, to find out who cheats."""
PAUSE_S = 0.2


def collect_key(
    network: Network,
    signed: SignedCredential,
    subject: Ed25519Signer,
    seal_key: SealKey,
    progress: Callable[[str], None],
) -> tuple[AttributeKey, PublicKey]:
    """The attribute key of the person with this credential, and the public key that it belongs to.

    Tells `progress` which authorities did not contribute and why. If too few do, raises what the only authority says, or `Unavailable`
    naming those of several.
    """
    issuers, needed = network.issuers, network.authority_threshold
    progress(f"asking for the key to the attributes ({needed} of {len(issuers)} authorities)")
    parts: dict[bytes, dict[int, AttributeKey]] = defaultdict(dict)
    refused: dict[int, DiptychError] = {}
    agreed: bytes | None = None
    pool = ThreadPoolExecutor(len(issuers))
    asked = {pool.submit(_ask, service, signed, subject): n for n, (_, service) in enumerate(issuers)}
    pending = set(asked)
    while pending:
        done, pending = wait(pending, GRACE_S if agreed else None, FIRST_COMPLETED)
        if not done:
            break
        for future in done:
            number = asked[future]
            try:
                issued = future.result()
                parts[issued.joint][number] = _checked_part(network, number, issued, signed, seal_key)
            except DiptychError as error:
                refused[number] = error
        agreed = next((joint for joint, found in parts.items() if len(found) >= needed), None)
    pool.shutdown(wait=False, cancel_futures=True)
    for joint, found in parts.items():
        if agreed not in (None, joint):
            refused |= dict.fromkeys(found, Unauthentic("presents another joint public key than the others"))
    faults = sorted(f"{issuers[number][0]}: {error}" for number, error in refused.items())
    if agreed is None:
        raise refused[0] if len(issuers) == 1 else _too_few(needed, len(issuers), faults, len(parts))
    for sentence in faults:
        progress(sentence)
    joint_key = JointKey.from_bytes(agreed)
    chosen = sorted(parts[agreed])[:needed]
    return joint_key.combine({number: parts[agreed][number] for number in chosen}), joint_key.public


def _ask(service: Service, signed: SignedCredential, subject: Ed25519Signer) -> Issued:
    """One authority's answer; asks again while the chains may still be catching up with the credential."""
    deadline = time.monotonic() + ANSWER_S
    while True:
        request = KeyRequest.make(KeyRequestBody(signed, bytes.fromhex(service.key), now_ms()), subject)
        try:
            with http_client(ANSWER_S) as http:
                answer = checked(http.post(f"{service.url}/v1/key", content=encode(request))).content
            issued = decode_issued(answer)
            issued.verify(request)
            return issued
        except httpx2.HTTPError as error:
            raise Unavailable(f"does not answer ({type(error).__name__})") from None
        except (Conflict, NotFound, Unavailable):
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE_S)


def _checked_part(
    network: Network, number: int, issued: Issued, signed: SignedCredential, seal_key: SealKey
) -> AttributeKey:
    """The part in an authority's answer if it fits the joint key beside it; raises `DiptychError`."""
    joint = JointKey.from_bytes(issued.joint)
    if (joint.threshold, len(joint.keys)) != (network.authority_threshold, len(network.issuers)):
        raise Unauthentic("presents a joint public key of other authorities than the network file names")
    part = read_attributes(seal_key.open(issued.sealed_part, "the issued key"))
    joint.check(number, part, signed.credential.attributes)
    return part


def _too_few(needed: int, count: int, faults: list[str], joints: int) -> Unavailable:
    if joints > 1:
        faults = [*faults, "the others do not agree on the joint public key"]
    return Unavailable(
        f"{needed} of the {count} authorities must issue the key together, and too few did ({'; '.join(faults)}); "
        "try again later, or tell the authorities"
    )
