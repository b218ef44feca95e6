"""A record as its patient keeps it in the home, and a version of it on its way to cloud and chains."""

from collections.abc import Iterator, Mapping
from typing import Annotated

import msgspec

from client.doctor import decode_part
from client.fhir import PRIVATE, Label, group_of, named
from client.home import MAX_FILE, Home
from client.pack import read_part
from crypto import ces
from crypto.codec import Bytes32, Decoder, Short, UInt, Wire
from crypto.epoch import in_week
from crypto.errors import Malformed, NotFound
from crypto.parts import open_part
from crypto.policy import either, parse
from protocol.contract import Proxy
from protocol.identity import ChainKind, Purpose, key_attribute
from protocol.record import MAX_CLASSES, MAX_PARTS, BlobRef, View
from protocol.tx import PolicyText, Publish, Rule

MAX_STORED = 4 << 20
"""Bytes of a stored record: a signature, its parts at some 250 bytes each, and its terms."""

AccessClass = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[a-z][a-z0-9-]*\Z")]


class StoredPart(Wire, frozen=True):
    """Where a part stands: its class, its key, and its ciphertext with the version that it was sealed in and its place in that version's
    pack. The doctor's signature is over the `commitment`, which stands in for the content wherever that is not looked at. `has_fields`: of
    the patient, as `client.fhir.lint` needs them."""

    label: Label
    commitment: Bytes32
    has_fields: bool
    access: AccessClass
    key: Bytes32
    sealed_in: UInt
    blob: BlobRef
    offset: UInt


class Terms(Wire, frozen=True):
    """The conditions of a record's rule besides who may read what, and for what (`protocol.tx.Rule`)."""

    from_ms: UInt | None = None
    until_ms: UInt | None = None
    uses: Annotated[int, msgspec.Meta(ge=1, le=2**31)] | None = None
    deny: Annotated[tuple[Bytes32, ...], msgspec.Meta(max_length=256)] = ()
    approval: PolicyText | None = None
    emergency: PolicyText | None = None

    @classmethod
    def of(cls, rule: Rule) -> "Terms":
        return cls(rule.from_ms, rule.until_ms, rule.uses, rule.deny, rule.approval, rule.emergency)


class StoredRecord(Wire, frozen=True, tag="stored-record/2"):
    """A record as its patient keeps it, but for the content of its parts, which are in packs; `version` 0 means not stored yet, then all
    parts are private. In policies, `@week` stands for the `week` in which a
    version is made. `proxies` are those whom the envelopes of this version let in. A retired record gets no more versions."""

    signature: ces.FullSignature
    version: UInt
    parts: Annotated[tuple[StoredPart, ...], msgspec.Meta(min_length=1, max_length=MAX_PARTS)]
    policies: Annotated[tuple[tuple[AccessClass, str], ...], msgspec.Meta(max_length=MAX_CLASSES)]
    purposes: tuple[Purpose, ...]
    terms: Terms = Terms()
    tags: Annotated[tuple[Bytes32, ...], msgspec.Meta(max_length=32)] = ()
    week: Short = ""
    proxies: tuple[Bytes32, ...] = ()
    is_retired: bool = False

    @property
    def header(self) -> ces.Header:
        return self.signature.header

    def policy_of(self, access: str) -> str | None:
        return dict(self.policies).get(access)

    @property
    def is_time_bound(self) -> bool:
        """Whether a policy says `@week`."""
        texts = [text for _, text in self.policies]
        texts += [text for text in (self.terms.approval, self.terms.emergency) if text is not None]
        return any(in_week(text, "") != text for text in texts)

    @property
    def labels(self) -> list[str]:
        return [part.label for part in self.parts]

    @property
    def commitments(self) -> list[bytes]:
        return [part.commitment for part in self.parts]

    @property
    def about(self) -> list[str]:
        """The labels of the parts with fields of the patient."""
        return [part.label for part in self.parts if part.has_fields]

    @property
    def classes(self) -> dict[str, str]:
        """The access class of each part, by label."""
        return {part.label: part.access for part in self.parts}

    @property
    def fresh(self) -> list[BlobRef]:
        """The parts that were sealed in this very version, in the order of its pack."""
        parts = sorted((p for p in self.parts if p.sealed_in == self.version), key=lambda p: p.offset)
        return [part.blob for part in parts]

    @property
    def shared_class(self) -> str:
        """The one class beside the private one; `Malformed` if there are more, each with a policy of its own."""
        names = [name for name, _ in self.policies if name != PRIVATE]
        if len(names) != 1:
            raise Malformed(
                f"the record has the shared classes {', '.join(names)}, and a Consent names one policy; use record policy and record rule"
            )
        return names[0]

    def labels_in(self, access: str) -> list[str]:
        return [part.label for part in self.parts if part.access == access]

    def indices_of(self, name: str) -> tuple[int, ...]:
        """The part with this label, or all parts of this group; `NotFound` listing the groups there are."""
        found = named(self.labels).get(name)
        if found is None:
            groups = ", ".join(dict.fromkeys(map(group_of, self.labels)))
            raise NotFound(f"the record has no part {name!r}; its parts are {groups}")
        return found

    def with_parts(self, parts: list[StoredPart], policies: Mapping[str, str]) -> "StoredRecord":
        """The same with other parts; classes that hold none are dropped."""
        used = {p.access for p in parts}
        kept = tuple(sorted((name, text) for name, text in policies.items() if name in used))
        return msgspec.structs.replace(self, parts=tuple(parts), policies=kept)

    def class_policies(self) -> dict[str, str]:
        """By access class, who may read it, for the week of this version."""
        return {name: self._in_week(text) for name, text in self.policies}

    def rule(self, kind: ChainKind) -> Rule:
        """By which the contract of a chain hands the index out: on the storage chain to whoever may read the private class, on the
        sharing chain to whoever may read any other."""
        policies = self.class_policies()
        if kind == "storage" and PRIVATE in policies:
            policy = policies[PRIVATE]
        else:
            policy = either(*(text for name, text in policies.items() if name != PRIVATE))
        terms = self.terms
        approval, emergency = terms.approval, terms.emergency
        return Rule(
            policy,
            self.purposes,
            terms.until_ms,
            terms.deny,
            terms.from_ms,
            terms.uses,
            None if approval is None else self._in_week(approval),
            None if emergency is None else self._in_week(emergency),
        )

    def envelope_policies(self) -> dict[str, str]:
        """By access class, whose attribute keys open its envelope: who may read, the patient's proxies, and for any class but the private
        one who may break the glass. The contract lets them have it under more conditions than a policy can say."""
        helpers = [key_attribute(proxy) for proxy in self.proxies]
        emergency = [] if self.terms.emergency is None else [self.terms.emergency]
        return {
            name: either(
                *map(self._in_week, [text, *helpers, *(emergency if name != PRIVATE else ())]),
            )
            for name, text in self.policies
        }

    def _in_week(self, text: str) -> str:
        return str(parse(in_week(text, self.week)))


class PendingVersion(Wire, frozen=True, tag="pending/2"):
    """A version on its way: with its pack, if it has one, everything needed to send it, again if need be."""

    stored: StoredRecord
    views: tuple[View, ...]
    envelopes: tuple[bytes, ...]
    publications: tuple[tuple[ChainKind, Publish], ...]


class Proxies(Wire, frozen=True, tag="proxies/1"):
    """Who acts for the patient of this home, as the patient last said on both chains."""

    proxies: tuple[Proxy, ...] = ()

    def reading(self, now_ms: int) -> tuple[bytes, ...]:
        """The keys of those who may read, now or later."""
        return tuple(sorted(p.proxy for p in self.proxies if "read" in p.powers and now_ms < p.until_ms))


class Contents(Mapping[str, bytes]):
    """The contents of a stored record's parts by label, each read and decrypted when it is asked for.

    Raises then as `client.pack.read_part`, and `Unauthentic` if the part does not open.
    """

    def __init__(self, home: Home, stored: StoredRecord) -> None:
        self._home, self._stored = home, stored
        self._indices = {label: index for index, label in enumerate(stored.labels)}

    def message(self, index: int) -> bytes:
        """What the doctor has signed as this part."""
        record, part = self._stored.header.record, self._stored.parts[index]
        sealed = read_part(self._home.pack(record, part.sealed_in), part.offset, part.blob.size)
        return open_part(part.key, record, index, part.sealed_in, sealed)[1]

    def __getitem__(self, label: str) -> bytes:
        return decode_part(self.message(self._indices[label])).content

    def __contains__(self, label: object) -> bool:
        return label in self._indices

    def __iter__(self) -> Iterator[str]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


decode_stored = Decoder(StoredRecord, "a stored record", MAX_STORED)
decode_pending_version = Decoder(PendingVersion, "a pending version", MAX_FILE)
decode_proxies = Decoder(Proxies, "the list of proxies", 1 << 20)
