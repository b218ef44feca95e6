"""Byzantine members: a true core whose effects are bent on the way out. Beside the code, never in it.

Twins are no class here: they are two ordinary instances with one key (`Cluster(twins=...)`).
"""

import random
from abc import ABC, abstractmethod
from typing import Any

import msgspec

from crypto.codec import encode
from protocol.block import Certificate, Kind, Message, Proposal, Report, Status, Vote, Votes, signer_set
from protocol.core import Core, Effect, Send

REPLACE = msgspec.structs.replace


class Liar(Core, ABC):
    """Follows the protocol to know what goes on; `bend` decides what it says."""

    def __init__(self, *args: Any, **other: Any) -> None:
        super().__init__(*args, **other)
        assert self._nonce is not None
        self.random = random.Random(self._nonce)
        self.said: list[Message] = []

    def take_effects(self) -> list[Effect]:
        kept: list[Effect] = []
        for effect in super().take_effects():
            if isinstance(effect, Send) and self.me is not None:
                self.said.append(effect.message)
                kept += self.bend(effect)
            else:
                kept.append(effect)
        return kept

    @abstractmethod
    def bend(self, send: Send) -> list[Effect]:
        """What goes out in place of `send`."""

    def others(self, send: Send) -> list[int]:
        everyone = [m for m in range(self.committee.size) if m != self.me]
        return everyone if send.to is None else [send.to]

    def vote(self, kind: Kind, view: int, block: bytes | None) -> Vote:
        assert self._key is not None
        assert self.me is not None
        return self.committee.sign(self._key, self.me, kind, view, block)


class Silent(Liar):
    """Says most things to nobody, or to some only."""

    def bend(self, send: Send) -> list[Effect]:
        return [Send(m, send.message) for m in self.others(send) if self.random.random() < 0.2]


class Equivocator(Liar):
    """As leader proposes one block to some and another to the rest, each with its own vote."""

    def bend(self, send: Send) -> list[Effect]:
        if not isinstance(send.message, Proposal):
            return [send]
        block = send.message.block
        header = REPLACE(block.header, time_ms=block.header.time_ms + 1)
        second = REPLACE(
            send.message,
            block=REPLACE(block, header=header),
            vote=self.vote("notarize", header.view, header.id),
        )
        return [Send(m, self.random.choice((send.message, second))) for m in self.others(send)]


class DoubleVoter(Liar):
    """Votes for every block it can think of, and for none, in every view."""

    def bend(self, send: Send) -> list[Effect]:
        if not isinstance(send.message, Votes | Proposal):
            return [send]
        known = [p.block.header.id for p in self._proposals.values()] or [bytes(32)]
        lies: list[Effect] = [send]
        for member in self.others(send):
            view, block = max(1, self.view - self.random.randrange(3)), self.random.choice(known)
            votes = (
                self.vote("notarize", view, self.random.choice((block, self.random.randbytes(32)))),
                self.vote("finalize", view, block),
            )
            lies.append(Send(member, Votes(votes, None)))
        return lies


class NullifyThenFinalize(Liar):
    """Nullifies each view, and finalizes what is notarized nevertheless: against Rule F."""

    def bend(self, send: Send) -> list[Effect]:
        view = self.view
        votes = [self.vote("nullify", view, None)]
        votes += [self.vote("finalize", v, c.block) for v, c in self._notarizations.items()]
        return [send, Send(self.random.choice(self.others(send)), Votes(tuple(votes[:64]), None))]


class Stale(Liar):
    """Says old things again, and that it stands at the beginning."""

    def bend(self, send: Send) -> list[Effect]:
        message = send.message
        if isinstance(message, Status):
            message = REPLACE(message, view=1, height=0, finalization=None)
        elif isinstance(message, Report):
            assert self._key is not None
            assert self.me is not None
            message = self.committee.report(self._key, self.me, message.nonce, 1, None)
        return [Send(send.to, message), Send(send.to, self.random.choice(self.said[-200:]))]


class Garbage(Liar):
    """Sends damaged bytes, and true messages with a field swapped."""

    def bend(self, send: Send) -> list[Effect]:
        data = bytearray(encode(send.message))
        for _ in range(self.random.randrange(1, 4)):
            data[self.random.randrange(len(data))] = self.random.randrange(256)
        return [send, Send(send.to, bytes(data)), Send(send.to, self.random.randbytes(50))]  # type: ignore[arg-type]


class Forger(Liar):
    """Makes certificates of too few votes, of its own vote alone, and of other people's votes for another block."""

    def bend(self, send: Send) -> list[Effect]:
        view, quorum = self.view, self.committee.quorum
        kind: Kind = self.random.choice(("notarize", "nullify", "finalize"))
        block = None if kind == "nullify" else self.random.randbytes(32)
        own = self.vote(kind, view, block)
        few = [
            v for (w, k, _), v in sorted(self._votes.items(), key=lambda i: i[0]) if (w, k) == (view, kind)
        ]
        few = [*few, own][: quorum - 1]
        forged = [
            Certificate(kind, view, block, signer_set(range(quorum)), (own.signature,) * quorum),
            Certificate(
                kind, view, few[0].block, signer_set(v.signer for v in few), tuple(v.signature for v in few)
            ),
        ]
        forged += [REPLACE(c, block=self.random.randbytes(32)) for c in self._notarizations.values()][:2]
        status = Status(self.committee.epoch, view, self.tip.height + 1, None, None, None, ())
        field = {"notarize": "notarization", "nullify": "nullification", "finalize": "finalization"}
        return [send, *(Send(send.to, REPLACE(status, **{field[c.kind]: c})) for c in forged)]


LIARS: dict[str, type[Liar]] = {
    kind.__name__: kind
    for kind in (Silent, Equivocator, DoubleVoter, NullifyThenFinalize, Stale, Garbage, Forger)
}
TWINS = "Twins"
