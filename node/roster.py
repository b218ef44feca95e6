"""Who the other members are, where they are, and under which number the core of the present epoch knows them.

Links go to the members of the newest epoch that this node knows of, which may be later than the one its core stands in: while it
catches up through old epochs, it is served by the present members. A change of links makes a new transport in the place of the old.
"""

from collections.abc import Callable, Mapping, Sequence

import structlog

from configs.members import newest
from crypto.errors import DiptychError
from node.net import Event, Net, NodeId, Peer
from protocol.block import Committee
from protocol.network import NodeAddress, split_host_port


class Roster:
    """`committee` is that of the core's epoch; `addresses` is asked anew each time, as operators add to it."""

    def __init__(
        self,
        me: NodeId,
        committee: Committee,
        transport: Callable[[Sequence[Peer]], Net],
        addresses: Callable[[], Mapping[str, NodeAddress]],
    ) -> None:
        self._me, self._transport, self._addresses = me, transport, addresses
        self._log = structlog.get_logger().bind(chain=committee.genesis.kind, node=me)
        self.newest = committee
        self.names: list[NodeId] = []
        """By number: the members of the core's epoch, then others who have a link."""
        self.enter(committee)
        self._peers = self._book()
        self.net = transport(self._peers)

    def enter(self, committee: Committee) -> None:
        """The core stands in another epoch now."""
        self.names = [m.name for m in committee.members]
        if committee.epoch > self.newest.epoch:
            self.newest = committee

    def number(self, peer: NodeId) -> int:
        """What the core calls a peer; one that is no member of its epoch gets a number beyond them."""
        if peer not in self.names:
            self.names.append(peer)
        return self.names.index(peer)

    def look_around(self) -> None:
        """Ask the nodes in the address book for members newer than known here. Blocks for seconds: call it off the loop."""
        try:
            urls = [a.http for name, a in self._addresses().items() if name != self._me]
        except DiptychError as error:
            self._log.error("the network file cannot be read", why=str(error))
            return
        found = newest(self.newest, urls)
        if found.epoch > self.newest.epoch:
            self._log.warning("the members have changed meanwhile", epoch=found.epoch)
            self.newest = found

    async def relink(self, on_event: Callable[[Event], None]) -> None:
        """Put a transport to the newest members in the place of the present one, if those are others than it links to."""
        peers = self._book()
        if peers != self._peers:
            self._log.info("linking anew", peers=[p.node for p in peers])
            self._peers = peers
            await self.net.stop()
            self.net = self._transport(peers)
            await self.net.start(on_event)

    def _book(self) -> list[Peer]:
        """The other members with their addresses; one without is left out, and the operator told."""
        try:
            addresses = self._addresses()
        except DiptychError as error:
            self._log.error("the network file cannot be read", why=str(error))
            return self._peers
        book = []
        for member in self.newest.members:
            address = addresses.get(member.name)
            if member.name == self._me:
                continue
            if address is None:
                self._log.error(
                    "a member has no address in the network file; add it there", member=member.name
                )
                continue
            book.append(Peer(member.name, member.identity, *split_host_port(address.p2p)))
        return book
