"""Changes to a node's ledger that no block makes, such as the index key dealt before the first one."""

from collections.abc import Callable

from node.ledger import Ledger, _Buckets, _Changes
from protocol.genesis import Genesis
from protocol.state import State
from tests.dealer import deal


def change(ledger: Ledger, make: Callable[[State], None]) -> None:
    """What `make` does to the state, as if it had always been so."""
    changes, buckets = _Changes(ledger), _Buckets(ledger)
    make(changes)
    root = buckets.put(changes.written)
    ledger._save(changes.written, buckets.changed)
    ledger._db.execute("UPDATE executed SET state = ?", (root,))


def deal_into(ledger: Ledger, genesis: Genesis) -> None:
    """Leave the index key in the state at genesis, unless there is one."""
    if ledger.get(b"index-key") is None:
        change(ledger, lambda state: deal(genesis, state))
