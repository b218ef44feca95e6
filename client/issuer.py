"""Who issues attribute keys: one authority, or several that each issue a part and none of which holds the master key.

An issuer keeps nothing about people. It gives a person the key to the attributes that the chains say are certified, after asking a quorum of
both for itself, and trusts no other authority's word but the certifying one's signature. Where there are several, the first start is the
ceremony (`protocol.ceremony`) in which they make their shares; words and answers go over the same HTTP as everything else.
"""

import os
import threading
from pathlib import Path

import httpx2
import structlog

from client.chain import ChainClient
from client.enrolment import MAX_SKEW_MS, Issued, KeyRequest
from client.web import checked, http_client, now_ms
from configs.files import read, read_key, write, write_key
from crypto.codec import encode
from crypto.dkg import HolderKey
from crypto.errors import Conflict, Denied, DiptychError, Malformed, NotFound, Unauthentic, Unavailable
from crypto.seal import seal
from crypto.sign import Ed25519Signer
from crypto.split import IssuerKey
from protocol.ceremony import MAX_MESSAGE, ROUNDS, Ceremony
from protocol.genesis import Genesis
from protocol.identity import KEY_KIND, key_attribute
from protocol.network import Network

PAUSE_S = 0.1
_log = structlog.get_logger("issuer")


class Issuer:
    """`keys` and `data` are the daemon's folders. `start` before the first key is asked for; `stop` at the end."""

    def __init__(
        self,
        key: Ed25519Signer,
        network: Network,
        chains: dict[str, Genesis],
        keys: Path,
        data: Path,
        passphrase: bytes | None,
    ) -> None:
        """`Conflict` if `key` or the share beside it is not of an authority that the network file names to issue keys."""
        self._key, self._network, self._passphrase = key, network, passphrase
        self._genesis = list(chains.values())
        self._chains = [ChainClient(genesis, network.chains[genesis.kind]) for genesis in chains.values()]
        self._folder, self._file = data / "ceremony", keys / "abe.key"
        self._holder_file = keys / "ceremony.key"
        listed = [service.key for _, service in network.issuers]
        if key.public.hex() not in listed:
            raise Conflict("this authority's key is none of those that issue keys by the network file")
        self._issuer: IssuerKey | None = None
        self._trouble: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if self._file.exists():
            self._issuer = IssuerKey.from_bytes(read_key(self._file, passphrase))
            self._holder_file.unlink(missing_ok=True)
            shape = (self._issuer.number, self._issuer.joint.threshold, len(self._issuer.joint.keys))
            if shape != (listed.index(key.public.hex()), network.authority_threshold, len(listed)):
                raise Conflict(f"{self._file} is a share among other authorities than the network file names")
        elif len(listed) == 1:
            raise NotFound(f"{self._file} does not exist; restore the master key from a backup")

    def start(self) -> None:
        """Hold the ceremony in the background if there is no share yet."""
        if self._issuer is None:
            self._thread = threading.Thread(target=self._hold_ceremony, name="ceremony")
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
        for chain in self._chains:
            chain.close()

    @property
    def public(self) -> bytes | None:
        """The public key that records are encrypted under; None until it is made."""
        return self._issuer.joint.public.to_bytes() if self._issuer else None

    def check_ready(self) -> IssuerKey:
        """The share, or `Unavailable` saying why there is none."""
        if self._issuer is None:
            raise Unavailable(
                self._trouble or "the authorities are still making their joint key; try again later"
            )
        return self._issuer

    def issue(self, request: KeyRequest) -> Issued:
        """This authority's part of the key to a certified person's attributes. Raises `DiptychError`."""
        issuer, body = self.check_ready(), request.body
        request.verify()
        if body.issuer != self._key.public:
            raise Denied("the request is for another authority")
        now = now_ms()
        if abs(now - body.time_ms) > MAX_SKEW_MS:
            raise Denied(
                "the request was signed at another time; set the clock of this machine and try again"
            )
        credential = body.credential.verify(self._genesis[0].authority, now)
        own = key_attribute(credential.subject)
        if any(name.startswith(f"{KEY_KIND}:") and name != own for name in credential.attributes):
            raise Denied("the credential names another person's key among its attributes")
        for chain in self._chains:
            person = chain.verified_person(credential.subject)
            if person.is_revoked:
                raise Denied("the credential of this key was revoked; ask the authority for a new invitation")
            if person.signed != body.credential:
                raise Conflict(
                    f"another credential of this key stands on the {chain.genesis.kind} chain; run: diptych renew"
                )
        part = issuer.issue(credential.attributes).to_bytes()
        _log.info("issued", role=credential.role)
        return Issued.make(request, issuer.joint.to_bytes(), seal(credential.seal_key, part), self._key)

    # --- the ceremony -----------------------------------------------------------------------------------------------------

    def word(self, round_: int) -> bytes:
        """What this authority has said in a round of the ceremony; `NotFound` if nothing yet."""
        if not 1 <= round_ <= ROUNDS:
            raise NotFound(f"a ceremony has rounds 1 to {ROUNDS}")
        return read(self._word_file(round_), MAX_MESSAGE)

    def _word_file(self, round_: int) -> Path:
        return self._folder / f"{round_}.word"

    def _hold_ceremony(self) -> None:
        try:
            self._issuer = self._made_together()
        except (DiptychError, OSError) as error:
            self._trouble = f"the authorities could not make their joint key: {error}"
            _log.error("ceremony ended", reason=str(error))

    def _made_together(self) -> IssuerKey | None:
        """The own share from the ceremony, kept; None if the daemon stops before. `Conflict` if it cannot go on."""
        if not self._holder_file.exists():
            if self._folder.exists():
                raise Conflict(
                    f"{self._holder_file} is gone in the middle of a ceremony; remove ceremony.key and the folder ceremony "
                    "on all authorities and start them again"
                )
            write_key(self._holder_file, HolderKey.generate().to_bytes(), self._passphrase)
        holder = HolderKey.from_bytes(read_key(self._holder_file, self._passphrase))
        members = [(name, bytes.fromhex(service.key)) for name, service in self._network.issuers]
        purpose = encode(sorted(genesis.hash for genesis in self._genesis))
        ceremony = Ceremony(
            purpose, members, self._network.authority_threshold, self._key, holder, os.urandom
        )
        _log.info("making the joint key", authorities=len(members), needed=ceremony.threshold)
        with http_client(5) as http:
            while ceremony.round <= ROUNDS:
                if ceremony.me in ceremony.missing:
                    ceremony.take(ceremony.me, self._own_word(ceremony))
                round_, missing = ceremony.round, ceremony.missing
                for member in missing:
                    if self._stop.is_set():
                        return None
                    self._hear(http, ceremony, member, round_)
                if ceremony.round == round_:
                    self._stop.wait(PAUSE_S)
        made = ceremony.outcome()
        write_key(self._file, made.to_bytes(), self._passphrase)
        self._holder_file.unlink()  # who has it opens the pieces anew; the words stay for those who are behind
        left_out = [ceremony.names[member] for member in ceremony.excluded]
        _log.info("the joint key is made", fingerprint=made.joint.public.fingerprint.hex(), left_out=left_out)
        return made

    def _own_word(self, ceremony: Ceremony) -> bytes:
        """The word for this round, on disk before anybody hears it, and the same after a restart."""
        path = self._word_file(ceremony.round)
        if not path.exists():
            write(path, ceremony.say())
        return read(path, MAX_MESSAGE)

    def _hear(self, http: httpx2.Client, ceremony: Ceremony, member: int, round_: int) -> None:
        """Ask a member for its word; whoever does not answer, or cannot be understood, is asked again later."""
        name, service = self._network.issuers[member]
        try:
            word = checked(http.get(f"{service.url}/v1/ceremony/{round_}")).content
        except (httpx2.HTTPError, DiptychError):
            return
        try:
            ceremony.take(member, word)
        except (Malformed, Unauthentic) as error:  # anybody can answer in its place, so this proves nothing
            _log.warning("a word of the ceremony was not understood", authority=name, reason=str(error))
