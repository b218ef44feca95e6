"""`Net` over asyncio and mutual TLS 1.3 with pinned keys: no libp2p, no second thread, no certificate authority.

A member is known by the Ed25519 key that its libp2p peer id spells out (an identity multihash), so the address book is all
that members need of each other. TLS wants a certificate around a key, and Python's ssl offers neither raw public keys
(RFC 7250) nor a verification callback; so the certificate has one fixed form with the key filled in, which everyone computes
from the peer id. Its signature field is empty and nobody relies on it. What a link rests on:

- a node trusts these certificates only, by the whole of their bytes: as server, of the members that dial it; as dialler, of
  the one it dials. OpenSSL refuses all others inside the handshake, and `_Link` compares once more;
- in TLS 1.3 the owner of a certificate signs the handshake with its key, so nobody gets far with the certificate of another;
- the two agree by ALPN on the chain. Older TLS, plaintext and resumed sessions are refused.

Links are those of node/links.py. The dialler counts one as up at the first byte that it reads, because TLS 1.3 judges the
dialler last. Frames are those of node/frames.py, in pieces, so that a vote does not queue behind megabytes.
Sources: RFC 8446 section 4.4.3, RFC 7301, RFC 5280 section 6.1.1 (trust anchors), github.com/libp2p/specs (peer-ids).
"""

import asyncio
import contextlib
import hashlib
import os
import ssl
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from node.frames import LIMITS, Cutter, Queues
from node.links import Link, LinkNet
from node.net import Peer

_PIECE = 64 << 10  # part of what the two sides agree on

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PEER_ID = bytes.fromhex(
    "0024 08011220"
)  # identity multihash of 36 bytes: protobuf of an Ed25519 key, of which 32 follow
# X.509 v3, serial 1, Ed25519, from "nobody", valid 2000 to 9999, for "diptych"; the key; not a CA, signature of zeros.
_BEFORE_KEY = bytes.fromhex(
    "3081e3 308196 a003020102 020101 300506032b6570 3011310f300d06035504030c066e6f626f6479"
    "3020 170d3030303130313030303030305a 180f39393939313233313233353935395a"
    "30123110300e06035504030c0764697074796368 302a300506032b6570032100"
)
_AFTER_KEY = bytes.fromhex("a310300e300c0603551d130101ff04023000 300506032b6570 034100") + bytes(64)


def identity_of(seed: bytes) -> str:
    """The libp2p peer id, in base58, of the Ed25519 key with this 32-byte seed."""
    return _peer_id(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw())


def _peer_id(public: bytes) -> str:
    number, digits = int.from_bytes(_PEER_ID + public), ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return "1" + digits  # the leading zero byte


def _public_key(identity: str) -> bytes:
    """The key in a peer id; `ValueError` unless that is the one spelling of an Ed25519 key."""
    number = 0
    for character in identity[:64]:
        number = number * 58 + _BASE58.index(character)
    public = (number % (1 << 256)).to_bytes(32)
    if _peer_id(public) != identity:
        raise ValueError("not the peer id of an Ed25519 key")
    return public


def _certificate(public: bytes) -> bytes:
    return _BEFORE_KEY + public + _AFTER_KEY


def _context(
    side: int, key: Ed25519PrivateKey, protocol: str, certificates: Iterable[bytes]
) -> ssl.SSLContext:
    """TLS 1.3 between the owner of `key` and the owners of exactly these certificates, over `protocol`."""
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the key is the name
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a trusted certificate needs no issuer
    context.set_alpn_protocols([protocol])
    if side == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    for certificate in certificates:
        context.load_verify_locations(cadata=certificate)
    own = ssl.DER_cert_to_PEM_cert(_certificate(key.public_key().public_bytes_raw())).encode()
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with _as_path(own) as certfile, _as_path(secret) as keyfile:
        context.load_cert_chain(certfile, keyfile)
    return context


@contextlib.contextmanager
def _as_path(content: bytes) -> Iterator[str]:
    """A path to read it from once, for what Python takes from files only; it is a pipe and never touches a disk."""
    reader, writer = os.pipe()
    try:
        with open(writer, "wb") as pipe:
            pipe.write(content)
        yield f"/dev/fd/{reader}"
    finally:
        os.close(reader)


class _Link(Link):
    """A connection to one of `members`, by certificate; accepted unless it `is_dialled`."""

    def __init__(self, net: "TlsNet", members: Mapping[bytes, Peer], *, is_dialled: bool) -> None:
        self._queue, self._cutter = Queues(LIMITS, _PIECE), Cutter(LIMITS, _PIECE)
        super().__init__(net, dict.fromkeys(LIMITS, self._queue))
        self._members, self._protocol, self._is_dialled = members, net.protocol, is_dialled

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake succeeded here."""
        super().connection_made(transport)
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        peer = self._members.get(tls.getpeercert(binary_form=True) or b"")
        if peer is None or tls.selected_alpn_protocol() != self._protocol:
            return self.end("not a member of this chain")
        self.peer = peer.node
        self._beat()
        if not self._is_dialled:
            self._up()

    async def set_up(self) -> None:
        """TLS has done it."""

    def _next(self) -> bytes:
        return self._queue.take()

    def _received(self, data: bytes) -> None:
        if not self.was_up:
            self._up()
        self._deliver(self._cutter.cut(data))


class TlsNet(LinkNet):
    __doc__ = LinkNet.__doc__

    def __init__(self, *, chain_id: str, identity_seed: bytes, **others: Any) -> None:
        super().__init__(**others)
        key = Ed25519PrivateKey.from_private_bytes(identity_seed)
        self.protocol = f"diptych/1/{hashlib.sha256(chain_id.encode()).hexdigest()}"
        self._server = _context(ssl.PROTOCOL_TLS_SERVER, key, self.protocol, self._inbound)
        self._clients = {
            certificate: _context(ssl.PROTOCOL_TLS_CLIENT, key, self.protocol, [certificate])
            for certificate in self._outbound
        }

    def _identity(self, text: str) -> bytes:
        return _certificate(_public_key(text))

    def _new_link(self, identity: bytes | None) -> tuple[Link, dict[str, Any]]:
        if identity is None:
            return _Link(self, self._inbound, is_dialled=False), {"ssl": self._server}
        link = _Link(self, {identity: self._outbound[identity]}, is_dialled=True)
        return link, {"ssl": self._clients[identity], "server_hostname": ""}
