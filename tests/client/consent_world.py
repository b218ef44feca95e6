"""Homes whose chains are the real contract on a state in memory, and whose cloud counts what it holds: everything a client does happens in
one thread, in one order, and can be cut off after any of its steps."""

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from client.chain import now_ms
from client.doctor import SignedPart, header_digest, write_package
from client.home import Home
from client.patient import Patient
from client.session import KINDS, Session
from crypto import ces
from crypto.codec import encode
from crypto.errors import Denied, NotFound, Unavailable
from crypto.fabeo import MasterKey
from crypto.sign import Ed25519Signer, SigningKey
from protocol import contract
from protocol.contract import Pending, Person, Proxy, Receipt, RecordEntry, decode_person
from protocol.genesis import Genesis
from protocol.identity import CesKey, ChainKind, Credential, Role, SignedCredential, Ticket, key_attribute
from protocol.index_key import IndexKey
from protocol.record import Delete, DeleteBody, DeletionReceipt, Upload
from protocol.tx import Action, Attest, Certify, Tx
from tests.client.client_world import AUTHORITY, network_files
from tests.dealer import deal, index_key
from tests.memory_state import MemoryState

T = TypeVar("T")
DAY_MS = 86_400_000
CLOUD = SigningKey(b"c" * 32)
MASTER = MasterKey.generate()
RECORD = b"r" * 16
LABELS = ("m0", "m1", "m8")
POLICIES = {"private": "role:doctor", "shared": "role:doctor or role:researcher"}
ACCESS = {"m0": "private", "m1": "shared", "m8": "private"}
DOCTOR_CES = ces.CesSigner.generate(ces.ED25519)


class Cut(BaseException):
    """The machine stops here."""


class Steps:
    """Counts the steps that have an effect outside the process's memory, and cuts after the one with the number `cut`."""

    def __init__(self) -> None:
        self.count = 0
        self.cut: int | None = None

    def step(self, act: Callable[[], T]) -> T:
        number, self.count = self.count, self.count + 1
        done = act()
        if self.cut == number:
            raise Cut
        return done


class MemoryChain:
    """The part of `ChainClient` that patients use."""

    def __init__(self, genesis: Genesis, steps: Steps) -> None:
        self.genesis, self._steps = genesis, steps
        self.state, self.receipts = MemoryState(), list[Receipt]()
        deal(genesis, self.state)

    def send(self, sender: Ed25519Signer, action: Action, seconds: float = 60) -> Receipt:
        def execute() -> Receipt:
            now = now_ms()
            tx = Tx.make(self.genesis.chain_id, sender, os.urandom(16), now + 1000, action)
            receipt = contract.apply(self.state, self.genesis, tx, len(self.receipts) + 1, 0, now)
            self.receipts.append(receipt)
            return receipt

        return self._steps.step(execute)

    def execute(self, sender: Ed25519Signer, action: Action, seconds: float = 60) -> Receipt:
        receipt = self.send(sender, action)
        if not receipt.ok:
            raise Denied(f"{receipt.reason} ({receipt.code})")
        return receipt

    def verified_receipt(self, tx_id: bytes) -> Any:
        for receipt in self.receipts:
            if receipt.tx == tx_id:
                return SimpleNamespace(proof=SimpleNamespace(receipt=receipt))
        raise NotFound("no such transaction")

    def verified_record(self, record: bytes) -> RecordEntry:
        entry = contract.get_record(self.state, record)
        if entry is None:
            raise NotFound("no such record")
        return entry

    def verified_person(self, key: bytes) -> Person:
        person = contract.get_person(self.state, key)
        if person is None:
            raise NotFound("nobody has this key")
        return person

    def credential(self, key: bytes) -> Credential:
        return self.verified_person(key).signed.credential

    def verified_log(self, record: bytes) -> Any:
        return SimpleNamespace(receipts=tuple(r for r in self.receipts if r.record == record))

    def index_key(self, seconds: float = 30) -> IndexKey:
        return index_key(self.genesis)

    def _ids(self, prefix: bytes) -> list[bytes]:
        return sorted(key[len(prefix) :] for key in self.state if key.startswith(prefix))

    def people(self) -> list[Person]:
        return [decode_person(self.state[contract.person_key(key)]) for key in self._ids(b"person/")]

    def inbox_of(self, patient: bytes) -> tuple[list[Pending], list[Pending]]:
        ids = self._ids(contract.inbox_list(patient))
        waiting = [p for i in ids if (p := contract.get_waiting(self.state, i))]
        return waiting, [p for i in ids if (p := contract.get_review(self.state, i))]

    def waiting(self) -> list[Pending]:
        return [p for i in self._ids(b"pending/") if (p := contract.get_waiting(self.state, i))]

    def wards_of(self, proxy: bytes) -> list[Proxy]:
        wards = self._ids(contract.ward_list(proxy))
        return [p for ward in wards if (p := contract.get_proxy(self.state, ward, proxy))]

    def grants_of(self, reader: bytes) -> list[Ticket]:
        ids = self._ids(contract.grant_list(reader))
        return [contract.decode_ticket(self.state[contract.grant_key(i)]) for i in ids]

    def close(self) -> None:
        pass


class MemoryCloud:
    """Holds views and blobs, gives true receipts; `is_down`: answers nobody."""

    key = CLOUD.public

    def __init__(self, steps: Steps) -> None:
        self._steps, self.is_down = steps, False
        self.uploads: dict[bytes, list[Upload]] = {}
        self.blobs: dict[bytes, bytes] = {}

    def upload(self, upload: Upload, content: Iterable[bytes]) -> None:
        def take() -> None:
            sent = io.BytesIO(b"".join(content))
            for view in upload.body.views[:1]:
                self.uploads.setdefault(view.record, []).append(upload)
            self.blobs |= {ref.hash: sent.read(ref.size) for ref in upload.body.blobs}
            assert all(hashlib.sha256(blob).digest() == name for name, blob in self.blobs.items())
            assert not sent.read()

        self._steps.step(take)

    def delete(self, record: bytes, patient: Ed25519Signer, before: int | None = None) -> DeletionReceipt:
        if self.is_down:
            raise Unavailable("the cloud does not answer")

        def delete() -> DeletionReceipt:
            kept = [] if before is None else self.uploads.get(record, [])
            gone = len(self.uploads.get(record, [])) - len(kept)
            self.uploads[record] = kept
            body = DeleteBody(self.key, patient.public, record, before, now_ms(), os.urandom(16))
            return DeletionReceipt.make(Delete.make(body, patient), gone, gone, gone, now_ms(), CLOUD)

        return self._steps.step(delete)

    def close(self) -> None:
        pass


class _CutHome(Home):
    """A home whose writes can be cut off."""

    steps: Steps

    def save(self, name: str, content: bytes) -> None:
        self.steps.step(lambda: super(_CutHome, self).save(name, content))

    def remove(self, name: str) -> None:
        self.steps.step(lambda: super(_CutHome, self).remove(name))

    def destroy(self, name: str) -> None:
        self.steps.step(lambda: super(_CutHome, self).destroy(name))

    def remove_packs(self, record: bytes, but: Collection[int] = ()) -> None:
        self.steps.step(lambda: super(_CutHome, self).remove_packs(record, but))


class World:
    """A patient with a record that a doctor has attested, and whoever else is certified with `join`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.network = folder, network_files(folder / "network")
        self.steps = Steps()
        self.doctor = SigningKey(b"d" * 32)
        home = Home.create(folder / "patient", self.network, None)
        self.chains = {kind: MemoryChain(home.chains[kind], self.steps) for kind in KINDS}
        self.cloud = MemoryCloud(self.steps)
        doctor_ces = CesKey(DOCTOR_CES.suite, DOCTOR_CES.public)
        self.certify(self.doctor, "doctor", ["role:doctor"], bytes(32), doctor_ces)
        signed = self.certify(home.sign, "patient", ["role:patient"], home.seal.public)
        self._enrol(home, signed)
        self.package = self._signed(home)

    def session(self, name: str = "patient") -> Session:
        home = _CutHome(self.folder / name)
        home.steps = self.steps
        session = Session(home)
        session.close()
        session.chains, session.cloud = dict(self.chains), self.cloud  # type: ignore[assignment]
        session.on_chains = _one_after_another  # type: ignore[method-assign,assignment]
        return session

    def join(self, name: str, role: Role, *attributes: str) -> Session:
        home = Home.create(self.folder / name, self.network, None)
        self._enrol(home, self.certify(home.sign, role, attributes, home.seal.public))
        return self.session(name)

    def certify(
        self,
        key: Ed25519Signer,
        role: Role,
        attributes: Iterable[str],
        seal_key: bytes,
        ces_key: CesKey | None = None,
    ) -> SignedCredential:
        listed, now = (*attributes, key_attribute(key.public)), now_ms()
        credential = Credential(key.public, role, listed, seal_key, ces_key, now - DAY_MS, now + 99 * DAY_MS)
        signed = SignedCredential.issue(credential, AUTHORITY)
        for chain in self.chains.values():
            chain.execute(AUTHORITY, Certify(signed))
        return signed

    def stored(self, **terms: object) -> Patient:
        patient = Patient(self.session())
        patient.receive(self.package)
        patient.store(RECORD, ACCESS, POLICIES, ("research", "treatment"), **terms)  # type: ignore[arg-type]
        return patient

    def saved(self) -> Callable[[], None]:
        """Puts everything back as it is now."""
        copy = Path(tempfile.mkdtemp(dir=self.folder.parent)) / "copy"
        shutil.copytree(self.folder, copy)
        states = {k: (dict(c.state), list(c.receipts)) for k, c in self.chains.items()}
        uploads = {record: list(found) for record, found in self.cloud.uploads.items()}

        def restore() -> None:
            shutil.rmtree(self.folder)
            shutil.copytree(copy, self.folder)
            for kind, (state, receipts) in states.items():
                self.chains[kind].state, self.chains[kind].receipts = MemoryState(state), list(receipts)
            self.cloud.uploads = {record: list(found) for record, found in uploads.items()}
            self.steps.count, self.steps.cut = 0, None

        return restore

    def _enrol(self, home: Home, signed: SignedCredential) -> None:
        key = MASTER.issue(signed.credential.attributes)
        home.enrol(signed, key.to_bytes(), MASTER.public.to_bytes())

    def _signed(self, home: Home) -> bytes:
        messages = [encode(SignedPart(label, b'{"part":"%s"}' % label.encode())) for label in LABELS]
        signature = ces.sign(
            messages,
            DOCTOR_CES,
            record=RECORD,
            patient=home.sign.public,
            doctor=self.doctor.public,
            created_ms=now_ms(),
            profile="safe",
        )
        for chain in self.chains.values():
            chain.execute(self.doctor, Attest(RECORD, home.sign.public, header_digest(signature.header)))
        package = io.BytesIO()
        write_package(signature, LABELS, iter(messages), home.seal.public, package)
        return package.getvalue()


def _one_after_another(act: Callable[[ChainKind], T], kinds: Iterable[ChainKind] = KINDS) -> list[T]:
    return [act(kind) for kind in kinds]
