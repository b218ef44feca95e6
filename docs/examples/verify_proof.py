"""Checks a proof file of Diptych against a genesis file, by docs/proof-format.md alone: it imports nothing of Diptych.

    python3 verify_proof.py FILE GENESIS.toml

needs Python 3.11, `cryptography` and `msgpack`. Prints what is proved and ends with 0, or says what does not hold and ends with 1.
"""

import datetime
import hashlib
import itertools
import json
import sys
import tomllib

import msgpack
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

CHECKPOINT = ["chain_id", "epoch", "height", "block", "time_ms", "receipts_root", "state_root"]
RECEIPT = [
    "tx",
    "height",
    "position",
    "time_ms",
    "kind",
    "sender",
    "record",
    "purpose",
    "request",
    "ok",
    "code",
    "reason",
]
IN_HEX = {"block", "receipts_root", "state_root", "tx", "sender", "record", "request"}
HEADER = [
    "chain_id",
    "epoch",
    "view",
    "height",
    "parent",
    "parent_view",
    "tx_root",
    "tx_count",
    "time_ms",
    "validators",
    "next_validators",
    "proposer",
]
STATEMENTS = {
    "state": {"kind", "key", "value", "bucket", "siblings", "signed"},
    "log": {"kind", "record", "receipts", "head"},
    "receipt": {
        *("kind", "receipt", "path", "root_before", "header", "links", "finalization"),
        *("transaction", "transaction_path", "signed"),
    },
}


class Wrong(Exception):
    """Something does not hold."""


def check(holds, what):
    if not holds:
        raise Wrong(what)


def tag(domain):
    return b"diptych/1/" + domain.encode() + b"\x00"


def digest(domain, data):
    return hashlib.sha256(tag(domain) + data).digest()


def pack(value):
    return msgpack.packb(value, use_bin_type=True)


def unpack(text):
    data = unhex(text)
    value = msgpack.unpackb(data, raw=False, strict_map_key=True)
    check(pack(value) == data, "an object is not in its one encoding")
    return value


def unhex(text):
    check(isinstance(text, str), "a byte string is not written in hex")
    value = bytes.fromhex(text)
    check(value.hex() == text, "hex digits are not written in their one form")
    return value


def is_signed(key, domain, payload, signature):
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, tag(domain) + payload)
    except (InvalidSignature, ValueError):
        return False
    return True


def object_of(kind, names, given):
    """The encoding of an object shown by its fields."""
    check(set(given) == set(names), f"the fields of a {kind} are not those of its form")
    return pack(
        [kind, *(unhex(given[n]) if n in IN_HEX and given[n] is not None else given[n] for n in names)]
    )


# --- the members of each epoch ---------------------------------------------------------------------------------------------


class Committee:
    def __init__(self, genesis, epoch, members):
        n = len(members)
        self.genesis, self.epoch, self.members = genesis, epoch, members
        self.quorum = n - (n - 1) // 3 if genesis["mode"] == "bft" else n // 2 + 1
        self.validators = validators(genesis, members)

    def check_certificate(self, certificate, block):
        kind, view, named, signers, signatures = certificate
        places = [i for i in range(8 * len(signers)) if signers[i // 8] >> i % 8 & 1]
        check((kind, named) == ("finalize", block), "a finalization is for another block")
        check(len(places) == len(signatures) == self.quorum, "a finalization has no quorum")
        check(places[-1] < len(self.members), "a finalization names members that do not exist")
        payload = pack([self.genesis["chain_id"], self.epoch, kind, view, named])
        for i, signature in zip(places, signatures, strict=True):
            check(is_signed(self.members[i][1], "vote", payload, signature), "a vote is forged")

    def check_final(self, headers, certificate):
        """That the first of these headers, each the parent of the next, is final in this epoch."""
        for header in headers:
            shown = dict(zip(HEADER, header, strict=True))
            check(
                (shown["chain_id"], shown["epoch"], shown["validators"])
                == (self.genesis["chain_id"], self.epoch, self.validators),
                "a header is of another chain or epoch",
            )
        for below, above in itertools.pairwise(headers):
            check(above[HEADER.index("parent")] == block_id(below), "headers are not linked")
        self.check_certificate(certificate, block_id(headers[-1]))


def block_id(header):
    return digest("block", pack(header))


def validators(genesis, members):
    return digest("validators", pack([genesis["mode"], members]))


def read_genesis(text):
    genesis = tomllib.loads(text)
    genesis["members"] = [
        [m["name"], bytes.fromhex(m["key"]), m["identity"], bytes.fromhex(m["share_key"])]
        for m in genesis["members"]
    ]
    genesis["authority"] = bytes.fromhex(genesis["authority"])
    genesis["admins"] = [bytes.fromhex(a) for a in genesis["admins"]]
    names = ["suite", "chain_id", "kind", "mode", "members", "authority", "time_ms", "admins", "admin_quorum"]
    names += ["term_length", "base_timeout_ms", "max_block_bytes", "max_block_txs"]
    check(set(genesis) == set(names), "the genesis file is of another form")
    return genesis, digest("genesis", pack([genesis[n] for n in names]))


def next_committee(old, genesis_hash, handover):
    suite, header, links, finalization, (kind, epoch, members, approvals) = handover
    last = dict(zip(HEADER, header, strict=True))
    check(
        (suite, kind, epoch) == ("handover/1", "members.change", old.epoch), "a handover is of another epoch"
    )
    old.check_final([header, *links], finalization)
    check(last["tx_count"] > 0, "the last block of an epoch brings no change")
    check(not any(h[HEADER.index("tx_count")] for h in links), "a block after the last one is not empty")
    check(last["next_validators"] == validators(old.genesis, members), "the next members are others")
    check(members != old.members, "a change of members changes nothing")
    admins, places = old.genesis["admins"], [a for a, _ in approvals]
    check(places == sorted(set(places)), "an admin has approved twice")
    check(admins and len(places) >= old.genesis["admin_quorum"], "too few admins have approved a change")
    payload = pack([genesis_hash, epoch, members])
    for admin, signature in approvals:
        check(is_signed(admins[admin], "members", payload, signature), "an approval is forged")
    return Committee(old.genesis, old.epoch + 1, members)


# --- statements ------------------------------------------------------------------------------------------------------------


def believed(signed, committees):
    """The checkpoint as its fields, and who has signed it."""
    check(set(signed) == {"checkpoint", "signatures"}, "a checkpoint is of another form")
    told, signatures = signed["checkpoint"], signed["signatures"]
    payload = object_of("checkpoint/1", CHECKPOINT, told)
    check(0 <= told["epoch"] < len(committees), "a checkpoint is of an unknown epoch")
    committee = committees[told["epoch"]]
    check(told["chain_id"] == committee.genesis["chain_id"], "a checkpoint is of another chain")
    check(all(set(s) == {"signer", "signature"} for s in signatures), "a signature is of another form")
    places = [s["signer"] for s in signatures]
    check(places == sorted(set(places)) and len(places) >= committee.quorum, "a checkpoint has no quorum")
    check(places[0] >= 0 and places[-1] < len(committee.members), "a signer does not exist")
    for s in signatures:
        key = committee.members[s["signer"]][1]
        check(is_signed(key, "checkpoint", payload, unhex(s["signature"])), "a signature is forged")
    return told, [committee.members[i][0] for i in places]


def proved_state(state, committees):
    """Key, value (None for none), checkpoint and signers."""
    check(set(state) == STATEMENTS["state"] and state["kind"] == "state", "a statement is of another form")
    told, names = believed(state["signed"], committees)
    key, bucket = unhex(state["key"]), unhex(state["bucket"])
    value = None if state["value"] is None else unhex(state["value"])
    hashed = digest("state-key", key)
    number = int.from_bytes(hashed[:2], "big")
    pairs = [(bucket[i : i + 32], bucket[i + 32 : i + 64]) for i in range(0, len(bucket), 64)]
    keys = [k for k, _ in pairs]
    check(len(bucket) % 64 == 0 and keys == sorted(set(keys)), "a bucket is not in order")
    check(all(int.from_bytes(k[:2], "big") == number for k in keys), "a bucket holds keys of others")
    expected = None if value is None else digest("state-value", value)
    check(dict(pairs).get(hashed) == expected, "a value is not that of the state")
    node, siblings = digest("state-bucket", bucket), [unhex(s) for s in state["siblings"]]
    check(len(siblings) == 16 and all(len(s) == 32 for s in siblings), "a path has another length")
    for level, sibling in enumerate(siblings):
        node = digest("state-node", sibling + node if number >> level & 1 else node + sibling)
    check(node.hex() == told["state_root"], "a value is not under the signed root")
    return key, value, told, names


def proved_log(log, committees):
    key, value, told, names = proved_state(log["head"], committees)
    check(key == b"log/" + unhex(log["record"]), "a log is of another record")
    count, chained = 0, bytes(32)
    for receipt in log["receipts"]:
        check(receipt["record"] == log["record"], "a receipt is of another record")
        count, chained = count + 1, digest("record-log", chained + object_of("receipt/1", RECEIPT, receipt))
    expected = None if count == 0 else pack(["log-head/1", count, chained])
    check(value == expected, "the log is not complete, or was changed")
    return told, names


def merkle(leaf, index, count, path):
    """RFC 6962, 2.1: the root over `count` leaves of which this is leaf `index`."""
    check(0 <= index < count, "a place beyond the block")
    node, rest, last = hashlib.sha256(b"\x00" + leaf).digest(), [unhex(p) for p in path], count - 1
    check(all(len(p) == 32 for p in rest), "a path has hashes of another length")
    while last > 0:
        if index % 2 or index < last:
            check(rest, "a path is too short")
            sibling = rest.pop(0)
            pair = sibling + node if index % 2 else node + sibling
            node = hashlib.sha256(b"\x01" + pair).digest()
        index, last = index // 2, last // 2
    check(not rest, "a path is too long")
    return node


def proved_receipt(statement, committees):
    told, names = believed(statement["signed"], committees)
    receipt, header = statement["receipt"], unpack(statement["header"])
    encoded, shown = object_of("receipt/1", RECEIPT, receipt), dict(zip(HEADER, header, strict=True))
    block = block_id(header)
    check(0 <= shown["epoch"] < len(committees), "a block is of an unknown epoch")
    committee = committees[shown["epoch"]]
    links = [unpack(link) for link in statement["links"]]
    committee.check_final([header, *links], unpack(statement["finalization"]))
    check(
        (block.hex(), shown["height"], shown["time_ms"]) == (told["block"], told["height"], told["time_ms"])
        and (receipt["height"], receipt["time_ms"]) == (told["height"], told["time_ms"]),
        "a receipt is of another block",
    )
    of_block = merkle(encoded, receipt["position"], shown["tx_count"], statement["path"])
    root = digest("receipts", pack([unhex(statement["root_before"]), block, of_block]))
    check(root.hex() == told["receipts_root"], "a receipt is not under the signed root")
    if statement["transaction"] is None:
        check(not statement["transaction_path"], "a path without its transaction")
    else:
        suite, body, _ = unpack(statement["transaction"])
        check((suite, digest("tx", pack(body)).hex()) == ("tx/1", receipt["tx"]), "another transaction")
        found = merkle(
            unhex(statement["transaction"]),
            receipt["position"],
            shown["tx_count"],
            statement["transaction_path"],
        )
        check(found == shown["tx_root"], "a transaction is not in its block")
    return told, names


def verify(text, genesis_text):
    """The lines that say what is proved; `Wrong` or another exception if the file does not prove all that it states."""
    genesis, genesis_hash = read_genesis(genesis_text)
    file = json.loads(text)
    check(set(file) == {"format", "chain", "genesis", "handovers", "statements"}, "no proof file")
    check(file["format"] == "diptych/proof/1", "a proof file of another format")
    check((file["chain"], file["genesis"]) == (genesis["chain_id"], genesis_hash.hex()), "another chain")
    committees = [Committee(genesis, 0, genesis["members"])]
    for handover in file["handovers"]:
        committees.append(next_committee(committees[-1], genesis_hash, unpack(handover)))
    lines = []
    for statement in file["statements"]:
        check(set(statement) == STATEMENTS[statement["kind"]], "a statement is of another form")
        if statement["kind"] == "state":
            key, value, told, names = proved_state(statement, committees)
            kind, _, name = key.partition(b"/")
            lines.append(
                f"{kind.decode(errors='replace')} {name.hex()}: {'nothing' if value is None else value.hex()}"
            )
        elif statement["kind"] == "log":
            told, names = proved_log(statement, committees)
            lines.append(
                f"the complete log of record {statement['record']}: {len(statement['receipts'])} receipts"
            )
            lines += [line_of(r) for r in statement["receipts"]]
        else:
            told, names = proved_receipt(statement, committees)
            lines += [
                f"the receipt of transaction {statement['receipt']['tx']}",
                line_of(statement["receipt"]),
            ]
        lines.append(
            f"  at height {told['height']} of {told['chain_id']}, {time_of(told['time_ms'])}, signed by {', '.join(names)}"
        )
    return lines


def line_of(receipt):
    decision = "allowed" if receipt["ok"] else "denied"
    return (
        f"  {time_of(receipt['time_ms'])} {receipt['kind']} by {receipt['sender']}"
        f" for {receipt['purpose'] or '-'}: {decision}, {receipt['reason']} ({receipt['code']})"
    )


def time_of(ms):
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    try:
        with open(sys.argv[1], encoding="utf-8") as f, open(sys.argv[2], encoding="utf-8") as g:
            print("\n".join(verify(f.read(), g.read())))
    except Exception as error:
        print(f"not proved: {error}", file=sys.stderr)
        sys.exit(1)
