"""BPDS (Liu et al. 2018, as the paper restates it): only shared sub-messages leave the patient, each of them by itself.

Each is a record of its own: signed by the doctor (a signature each, since an entry on chain stands for one signed header), encrypted under its own
key and CP-ABE header, uploaded and indexed on one chain; a reader makes one request for each. Private parts are nowhere but with the patient,
so nobody reads the whole record from the cloud, and sharing one more part needs the doctor's word for it on chain. New rights mean new keys: every sub-message is encrypted and
uploaded anew, under the same record id.
"""

from collections.abc import Collection, Sequence

from bench.baselines.diptych import OneChainPatient
from bench.baselines.scheme import SHARED, Held, Rights, Scheme, at_once
from client.fhir import Part
from client.home import Home

READ_AT_ONCE = 4


class Bpds(Scheme):
    """`read` asks for one sub-message after the other, as in the paper; `read_at_once` for several at a time."""

    name, title = "bpds", "BPDS"
    keeps_whole = False
    patient_type = OneChainPatient

    def store(self, parts: Sequence[Part], shared: Collection[str], rights: Rights) -> Held:
        held = Held(tuple(parts), set(shared), rights)
        chosen = [p for p in parts if p.label in shared]
        held.records = dict(at_once(lambda part: (part.label, self._store_one(part, rights)), chosen))
        return held

    def _store_one(self, part: Part, rights: Rights) -> bytes:
        return self._record([part], {part.label: SHARED}, {SHARED: rights.policies[SHARED]})

    def read(self, held: Held, reader: Home, count: int | None = None) -> dict[str, bytes]:
        """The first `count` sub-messages, by default all."""
        return self._read(held, reader, count, 1)

    def read_at_once(self, held: Held, reader: Home, count: int | None = None) -> dict[str, bytes]:
        return self._read(held, reader, count, READ_AT_ONCE)

    def _read(self, held: Held, reader: Home, count: int | None, at_a_time: int) -> dict[str, bytes]:
        wanted = list(held.records.values())[:count]
        found: dict[str, bytes] = {}
        for opened in at_once(lambda record: self._open(record, reader, "sharing"), wanted, at_a_time):
            found |= opened
        return found

    def read_whole(self, held: Held, reader: Home) -> dict[str, bytes]:
        return self.read(held, reader)

    def share(self, held: Held, label: str) -> None:
        part = next(p for p in held.parts if p.label == label)
        held.records[label] = self._store_one(part, held.rights)
        held.shared.add(label)

    def permit(self, held: Held, rights: Rights) -> None:
        policies = {SHARED: rights.policies[SHARED]}
        at_once(lambda record: self.patient.rekey(record, policies=policies), held.records.values())
        held.rights = rights
