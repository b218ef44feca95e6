"""A node's ledger to which the index key has been dealt before the first block."""

from node.ledger import Ledger, _Buckets
from protocol.genesis import Genesis
from tests.dealer import deal
from tests.memory_state import MemoryState


def deal_into(ledger: Ledger, genesis: Genesis) -> None:
    """Leave the index key in the state at genesis, unless there is one."""
    if ledger.get(b"index-key") is None:
        dealt, buckets = MemoryState(), _Buckets(ledger)
        deal(genesis, dealt)
        root = buckets.put(dealt)
        ledger._save(dealt, buckets.changed)
        ledger._db.execute("UPDATE executed SET state = ?", (root,))
