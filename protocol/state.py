"""What the contract works on: a map from byte keys to canonical objects, and the refusals that become receipts."""

from typing import Protocol


class StateReader(Protocol):
    """The contract's state, as a node keeps it."""

    def get(self, key: bytes) -> bytes | None: ...


class State(StateReader, Protocol):
    """The state while a transaction is executed."""

    def put(self, key: bytes, value: bytes) -> None: ...
    def remove(self, key: bytes) -> None: ...


class Refused(Exception):
    """The contract refuses a transaction; `code` is for programs, `reason` for people. Nothing is changed before it is raised."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason
