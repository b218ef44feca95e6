"""A data user requests the shared part of a record and prints what kinds of resources it holds.

python client/examples/researcher.py HOME RECORD
"""

import json
import sys
from collections import Counter
from pathlib import Path

from client.home import Home
from client.reader import Reader
from client.session import Session

home, record = sys.argv[1], bytes.fromhex(sys.argv[2])
with Session(Home(Path(home))) as session:
    reader = Reader(session)
    receipt = reader.request(record, "sharing", "research")
    if not receipt.ok:
        sys.exit(f"denied: {receipt.reason}")
    opened = reader.open(record, "sharing")
kinds = Counter(
    e["resource"]["resourceType"] for p in opened.parts.values() for e in json.loads(p).get("entries", [])
)
print(f"verified {len(opened.parts)} parts: {', '.join(opened.parts)}")
print(", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
