"""A node's ledger whose state is changed as no block did, such as by dealing it the index key before the first one."""

from collections.abc import Mapping

from node.ledger import Ledger, _Buckets
from protocol.genesis import Genesis
from tests.dealer import deal
from tests.memory_state import MemoryState


def deal_into(ledger: Ledger, genesis: Genesis) -> None:
    """Leave the index key in the state at genesis, unless there is one."""
    if ledger.get(b"index-key") is None:
        dealt = MemoryState()
        deal(genesis, dealt)
        write_into(ledger, dealt)


def write_into(ledger: Ledger, changes: Mapping[bytes, bytes | None]) -> None:
    """Change the state at the height executed so far, as no block did."""
    buckets = _Buckets(ledger)
    root = buckets.put(changes)
    ledger._save(changes, buckets.changed)
    ledger._db.execute("UPDATE executed SET state = ? WHERE height = ?", (root, ledger.head()[0]))
