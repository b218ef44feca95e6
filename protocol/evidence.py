"""Pairs of votes that no honest key signs (docs/protocol.md, "Evidence"): each proves its signer's guilt to anyone with genesis."""

from crypto.codec import Decoder, UInt, Wire
from protocol.block import Committee, Vote


class Evidence(Wire, frozen=True, tag="evidence/1"):
    """`kind` is E1 (two notarizes in a view), E2 (two finalizes), E3 (notarize and finalize of different blocks) or
    E4 (nullify at or before a finalize in one term). The signer is a member of `epoch`."""

    kind: str
    epoch: UInt
    first: Vote
    second: Vote


decode_evidence = Decoder(Evidence, "a piece of evidence", 4 << 10)


def conflict(committee: Committee, a: Vote, b: Vote) -> Evidence | None:
    """The evidence that two valid votes of one signer make, if they contradict each other; the same for (b, a)."""
    if a.signer != b.signer:
        return None
    if a.view == b.view and a.block and b.block and a.block != b.block:
        kind = "E3" if a.kind != b.kind else "E1" if a.kind == "notarize" else "E2"
        a, b = sorted((a, b), key=lambda v: (v.kind != "notarize", v.block))
        return Evidence(kind, committee.epoch, a, b)
    for nullify, finalize in ((a, b), (b, a)):
        if (
            nullify.kind == "nullify"
            and finalize.kind == "finalize"
            and nullify.view <= finalize.view
            and committee.term(nullify.view) == committee.term(finalize.view)
        ):
            return Evidence("E4", committee.epoch, nullify, finalize)
    return None
