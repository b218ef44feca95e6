"""The interface that all schemes share, and a session that knows one chain alone."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from threading import Lock
from typing import Any, ClassVar, Self, TypeVar

from client.cloud import CloudClient
from client.doctor import Doctor
from client.fhir import PRIVATE, Part
from client.home import Home
from client.patient import Patient
from client.reader import Reader
from client.session import KINDS, Session
from crypto.codec import encode
from crypto.errors import Denied
from protocol.identity import ChainKind, Purpose
from protocol.record import Upload, UploadReceipt

T = TypeVar("T")
SHARED = "shared"
PURPOSE: Purpose = "treatment"
"""Not research: for that the client would first look for the patient's name in what is shared, which no baseline does."""
AT_ONCE = 8
"""Sub-messages or entries that one person works on at a time."""


@dataclass(frozen=True)
class Rights:
    """Attributes of which a reader needs one: `full` for the whole record, `shared` or `full` for the shared part."""

    full: tuple[str, ...]
    shared: tuple[str, ...]

    @property
    def policies(self) -> dict[str, str]:
        return {PRIVATE: " or ".join(self.full), SHARED: " or ".join((*self.full, *self.shared))}


@dataclass(frozen=True)
class People:
    """Everyone in an experiment, enrolled; `readers` are all who may ever be on an access list."""

    doctor: Home
    patient: Home
    readers: Sequence[Home]


@dataclass
class Held:
    """A record as its patient knows it: the parts, the labels of the shared ones, and what is stored of it under which record id."""

    parts: tuple[Part, ...]
    shared: set[str]
    rights: Rights
    records: dict[str, bytes] = field(default_factory=dict)

    def contents(self, is_shared: bool) -> dict[str, bytes]:
        return {p.label: p.content for p in self.parts if p.label in self.shared or not is_shared}


class _MeteredCloud(CloudClient):
    """Counts what it sends up."""

    uploaded = 0

    def upload(self, upload: Upload, content: Iterable[bytes]) -> UploadReceipt:
        self.uploaded += len(encode(upload)) + sum(ref.size for ref in upload.body.blobs)
        return super().upload(upload, content)


class MeteredSession(Session):
    def __init__(self, home: Home) -> None:
        super().__init__(home)
        self.cloud.close()
        self.cloud = self.metered = _MeteredCloud(home.network.cloud)


class OneChainSession(MeteredSession):
    """Knows only the sharing chain, under both names."""

    def __init__(self, home: Home) -> None:
        super().__init__(home)
        self.chains["storage"].close()
        self.chains = dict.fromkeys(KINDS, self.chains["sharing"])

    def on_chains(self, act: Callable[[ChainKind], T], kinds: Iterable[ChainKind] = KINDS) -> list[T]:
        return [act("sharing")]


class Scheme(ABC):
    """One way to store and share records. Sessions are made when somebody first does something, and kept; `close` ends them."""

    name: ClassVar[str]
    title: ClassVar[str]
    keeps_whole: ClassVar[bool] = True
    """Whether the cloud holds the private parts too, for those who may have the whole record."""
    session_type: ClassVar[type[MeteredSession]] = OneChainSession
    patient_type: ClassVar[type[Patient]] = Patient
    reader_type: ClassVar[type[Reader]] = Reader

    def __init__(self, people: People) -> None:
        self.people = people
        self._sessions: dict[bytes, MeteredSession] = {}
        self._lock = Lock()

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def store(self, parts: Sequence[Part], shared: Collection[str], rights: Rights) -> Held:
        """The doctor signs, the patient encrypts, uploads and indexes; only `shared` of the labels are in the shared part."""

    @abstractmethod
    def read(self, held: Held, reader: Home) -> dict[str, bytes]:
        """The shared part, from the request to the plaintext, verified against the doctor's signature. `Denied` for who may not."""

    @abstractmethod
    def read_whole(self, held: Held, reader: Home) -> dict[str, bytes]:
        """As `read`, all that the scheme keeps in the cloud."""

    @abstractmethod
    def share(self, held: Held, label: str) -> None:
        """Move one private part into the shared part (paper eq. 19)."""

    @abstractmethod
    def permit(self, held: Held, rights: Rights) -> None:
        """Change who may read what (eqs. 20, 21)."""

    @property
    def uploaded(self) -> int:
        """Bytes that the patient has sent to the cloud so far."""
        return self.session(self.people.patient).metered.uploaded

    @property
    def doctor(self) -> Doctor:
        return Doctor(self.session(self.people.doctor))

    @property
    def patient(self) -> Patient:
        return self.patient_type(self.session(self.people.patient))

    def session(self, home: Home) -> MeteredSession:
        key = home.sign.public
        with self._lock:
            if key not in self._sessions:
                self._sessions[key] = self.session_type(home)
            return self._sessions[key]

    def _record(self, parts: Sequence[Part], access: dict[str, str], policies: dict[str, str]) -> bytes:
        """A new record of these parts, signed, attested and stored; its id."""
        package = BytesIO()
        signed, _ = self.doctor.sign_parts(list(parts), self.people.patient.sign.public, "paper", package)
        self.doctor.attest(signed)
        package.seek(0)
        self.patient.receive(package)
        self.patient.store(signed.record, access, policies, (PURPOSE,))
        return signed.record

    def _open(self, record: bytes, reader: Home, kind: ChainKind) -> dict[str, bytes]:
        asking = self.reader_type(self.session(reader))
        receipt = asking.request(record, kind, PURPOSE)
        if not receipt.ok:
            raise Denied(f"the {kind} chain refused: {receipt.reason} ({receipt.code})")
        with asking.open(record, kind) as opened:
            return dict(opened.parts)


def at_once(work: Callable[[Any], T], items: Iterable[Any], count: int = AT_ONCE) -> list[T]:
    """`work` on each item, `count` at a time; the first failure is raised after all have ended."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, list(items)))
