"""Cloud storage with an access list: the whole record as one ciphertext, and what is shared as a second one, both indexed on one chain.

No attribute-based encryption: a list names the readers. The contract enforces it, as the rule of an entry is satisfied by the listed people's own keys
(`key:…`, which the authority certifies for each), and the envelope has the key sealed to each of them. There is no extraction either: what is shared is signed by the
doctor as a message of its own. So another shared part needs the doctor, a new ciphertext and a new entry, and the old copy goes; other rights need a new
list alone.
"""

import os
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Annotated

import msgspec

from bench.baselines.diptych import OneChainPatient
from bench.baselines.scheme import SHARED, Held, People, Rights, Scheme, at_once
from client.fhir import Part
from client.home import Home
from client.reader import Reader
from client.session import Session
from crypto.codec import Bytes32, Decoder, Wire, encode
from crypto.policy import Attribute, parse
from crypto.seal import OVERHEAD, seal
from protocol.identity import key_attribute
from protocol.record import Envelope

WHOLE = "whole"
CHUNK = 32 << 20
"""Bytes of a part, where one would be too large."""


class _Entry(Wire, frozen=True):
    subject: Bytes32
    sealed: Annotated[bytes, msgspec.Meta(max_length=32 + OVERHEAD)]


_decode_list = Decoder[tuple[_Entry, ...]](tuple[_Entry, ...], "an access list", 1 << 20)


class _ListPatient(OneChainPatient):
    """Seals the key to everyone whom a policy of the form `key:a or key:b` names."""

    def __init__(self, session: Session, seal_keys: dict[str, tuple[bytes, bytes]]) -> None:
        super().__init__(session)
        self._seal_keys = seal_keys

    def _encapsulate(self, policy: str, context: bytes) -> tuple[bytes, bytes]:
        root, class_key = parse(policy).root, os.urandom(32)
        names = [root] if isinstance(root, Attribute) else root.children
        people = [self._seal_keys[node.name] for node in names if isinstance(node, Attribute)]
        return encode(tuple(_Entry(subject, seal(key, class_key)) for subject, key in people)), class_key


class _ListReader(Reader):
    def _class_key(self, envelope: Envelope) -> bytes | None:
        me = self._home.sign.public
        mine = [e for e in _decode_list(envelope.header) if e.subject == me]
        return self._home.seal.open(mine[0].sealed, "the key on the access list") if mine else None


class Traditional(Scheme):
    name, title = "traditional", "Traditional"
    reader_type = _ListReader

    def __init__(self, people: People) -> None:
        super().__init__(people)
        self._credentials = [home.credential.credential for home in people.readers]

    @property
    def patient(self) -> _ListPatient:
        return _ListPatient(self.session(self.people.patient), self._seal_keys)

    @cached_property
    def _seal_keys(self) -> dict[str, tuple[bytes, bytes]]:
        return {key_attribute(c.subject): (c.subject, c.seal_key) for c in self._credentials}

    def _names(self, attributes: tuple[str, ...]) -> str:
        """The list of the people with one of these attributes."""
        chosen = [c for c in self._credentials if set(attributes) & set(c.attributes)]
        return " or ".join(key_attribute(c.subject) for c in chosen)

    def _policy(self, copy: str, rights: Rights) -> dict[str, str]:
        return {copy: self._names(rights.full if copy == WHOLE else (*rights.full, *rights.shared))}

    def _store_copy(self, copy: str, held: Held) -> tuple[str, bytes]:
        contents = {label: msgspec.Raw(content) for label, content in held.contents(copy == SHARED).items()}
        message = msgspec.json.encode(contents)
        pieces = [message[start : start + CHUNK] for start in range(0, len(message), CHUNK)]
        parts = [Part(f"{copy}-{n}", copy, copy, piece) for n, piece in enumerate(pieces, 1)]
        access = {part.label: copy for part in parts}
        return copy, self._record(parts, access, self._policy(copy, held.rights))

    def store(self, parts: Sequence[Part], shared: Collection[str], rights: Rights) -> Held:
        held = Held(tuple(parts), set(shared), rights)
        held.records = dict(at_once(lambda copy: self._store_copy(copy, held), (WHOLE, SHARED)))
        return held

    def _open_copy(self, held: Held, copy: str, reader: Home) -> dict[str, bytes]:
        pieces = self._open(held.records[copy], reader, "sharing")
        content = b"".join(pieces[f"{copy}-{n}"] for n in range(1, len(pieces) + 1))
        found = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        return {label: bytes(raw) for label, raw in found.items()}

    def read(self, held: Held, reader: Home) -> dict[str, bytes]:
        return self._open_copy(held, SHARED, reader)

    def read_whole(self, held: Held, reader: Home) -> dict[str, bytes]:
        return self._open_copy(held, WHOLE, reader)

    def share(self, held: Held, label: str) -> None:
        old = held.records[SHARED]
        held.shared.add(label)
        _, held.records[SHARED] = self._store_copy(SHARED, held)
        session = self.session(self.people.patient)
        removals = (
            lambda: self.patient.retire(old),
            lambda: session.cloud.delete(old, session.home.sign),
        )
        at_once(lambda remove: remove(), removals)

    def permit(self, held: Held, rights: Rights) -> None:
        at_once(
            lambda copy: self.patient.set_policies(held.records[copy], self._policy(copy, rights)),
            held.records,
        )
        held.rights = rights
