"""A home connected to its network: both chains, the cloud, the authority. What every role starts from."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import httpx2

from client.chain import ChainClient
from client.cloud import CloudClient
from client.collect import collect_key
from client.enrolment import Enrolment, EnrolmentBody, Invitation, Renewal
from client.home import Home
from client.web import checked, http_client, now_ms
from crypto.codec import encode
from crypto.epoch import renewed, week_at
from crypto.errors import Conflict, Malformed, Unauthentic, Unavailable
from protocol.identity import CesKey, ChainKind, decode_credential

T = TypeVar("T")
Progress = Callable[[str], None]
"""Called with a short sentence before each step of long work."""

KINDS: tuple[ChainKind, ChainKind] = ("storage", "sharing")
REPORT_S = 5.0
"""How often long work tells how far it is."""


def quiet(_: str) -> None:
    """Progress that nobody watches."""


class Session:
    """Use as a context manager, or call `close`."""

    def __init__(self, home: Home, progress: Progress = quiet) -> None:
        self.home, self.progress = home, progress
        self.chains = {
            kind: ChainClient(home.chains[kind], home.network.chains[kind], progress) for kind in KINDS
        }
        self.cloud = CloudClient(home.network.cloud, home.path)
        self._pool = ThreadPoolExecutor(len(KINDS))

    def close(self) -> None:
        self._pool.shutdown()
        for chain in self.chains.values():
            chain.close()
        self.cloud.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def meter(self, what: str, size: int | None = None) -> Callable[[int], None]:
        """To be called with each number of bytes done, of `size` in all if that is known; now and then says how far that is."""
        done, told = 0, time.monotonic()

        def count(more: int) -> None:
            nonlocal done, told
            done += more
            if (now := time.monotonic()) > told + REPORT_S:
                told = now
                self.progress(f"{what}: {done >> 20:,}" + (f" of {size >> 20:,}" if size else "") + " MiB")

        return count

    def on_chains(self, act: Callable[[ChainKind], T], kinds: Iterable[ChainKind] = KINDS) -> list[T]:
        """Do the same on several chains at once; the first failure is raised after all have ended."""
        asked = [self._pool.submit(act, kind) for kind in kinds]
        wait(asked)
        return [future.result() for future in asked]

    def aside(self, act: Callable[[], T]) -> Future[T]:
        """Do something while the caller goes on, who asks for its result later."""
        return self._pool.submit(act)

    def enrol(self, text: str) -> None:
        """Have the home's keys certified with an invitation; safe to repeat after a failure."""
        invitation = Invitation.from_text(text)
        invite = invitation.invite
        home, authority = self.home, bytes.fromhex(self.home.network.authority.key)
        invite.verify(authority)
        if (home.ces is None) == (invite.body.role == "doctor"):
            raise Malformed(
                "the invitation is for another role than this home was made for; make a new home with it"
            )
        if home.is_enrolled and home.credential.credential.role != invite.body.role:
            raise Conflict("this home is enrolled in another role already")
        ces = CesKey(home.ces.suite, home.ces.public) if home.ces else None
        body = EnrolmentBody(invite, home.sign.public, home.seal.public, ces)
        enrolment = Enrolment.make(body, home.sign, invitation)
        self.progress("asking the authority to certify the keys on both chains")
        self._ask_authority("enrol", encode(enrolment))

    @property
    def is_renewal_due(self) -> bool:
        """Whether the home holds time-bound attributes of another week than this."""
        week, credential = week_at(now_ms()), self.home.credential.credential
        return any(renewed(name, week) != name for name in credential.attributes)

    def renew(self) -> None:
        """Have the home's time-bound attributes certified and its attribute key issued for this week; safe to repeat."""
        self.progress("asking the authority for this week's attributes")
        self._ask_authority("renew", encode(Renewal.make(self.home.sign, now_ms())))

    def _ask_authority(self, what: str, content: bytes) -> None:
        """Post a request of the home's person, and keep the credential that comes with the key to its attributes."""
        home = self.home
        try:
            with http_client(150) as http:
                response = checked(http.post(f"{home.network.authority.url}/v1/{what}", content=content))
        except httpx2.HTTPError as error:
            raise Unavailable(
                f"the authority does not answer ({type(error).__name__}); try again later"
            ) from None
        signed = decode_credential(response.content)
        if signed.verify(bytes.fromhex(home.network.authority.key), now_ms()).subject != home.sign.public:
            raise Unauthentic("the authority answered with the credential of another person; ask again")
        key, public = collect_key(home.network, signed, home.sign, home.seal, self.progress)
        if home.is_enrolled and home.abe_public.fingerprint != public.fingerprint:
            raise Unauthentic(
                "the authorities issue keys under another public key than when this home was enrolled; ask them why"
            )
        home.enrol(signed, key.to_bytes(), public.to_bytes())
