"""The product as it is, and the product on one chain."""

from collections.abc import Collection, Mapping, Sequence

from bench.baselines.scheme import SHARED, Held, MeteredSession, OneChainSession, Rights, Scheme
from client.fhir import PRIVATE, Part
from client.home import Home
from client.patient import Patient
from protocol.identity import ChainKind


class Diptych(Scheme):
    name, title = "diptych", "Diptych"
    session_type = MeteredSession
    whole_on: ChainKind = "storage"

    def store(self, parts: Sequence[Part], shared: Collection[str], rights: Rights) -> Held:
        access = {p.label: SHARED if p.label in shared else PRIVATE for p in parts}
        record = self._record(parts, access, rights.policies)
        return Held(tuple(parts), set(shared), rights, {"record": record})

    def read(self, held: Held, reader: Home) -> dict[str, bytes]:
        return self._open(held.records["record"], reader, "sharing")

    def read_whole(self, held: Held, reader: Home) -> dict[str, bytes]:
        return self._open(held.records["record"], reader, self.whole_on)

    def share(self, held: Held, label: str) -> None:
        self.patient.move(held.records["record"], label, SHARED)
        held.shared.add(label)

    def permit(self, held: Held, rights: Rights) -> None:
        self.patient.set_policies(held.records["record"], rights.policies)
        held.rights = rights


class OneChainPatient(Patient):
    def _reach(self, envelopes: Mapping[str, bytes]) -> dict[ChainKind, Mapping[str, bytes]]:
        return {"sharing": envelopes}


class OneChain(Diptych):
    """The contract asks for the shared policy, which whoever may have the whole satisfies too; the envelopes decide what opens."""

    name, title = "diptych_one_chain", "Diptych on one chain"
    session_type = OneChainSession
    patient_type = OneChainPatient
    whole_on = "sharing"
