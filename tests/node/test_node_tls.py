"""Who gets a link from node/tls.py and who does not, and what a member may do to one that it has.

Most attackers use Python's ssl. One must present a certificate without its key, which no library offers: `Tls13` speaks just
enough of RFC 8446 for that, and with the right key it is let in.
"""

import asyncio
import contextlib
import datetime
import hashlib
import hmac
import logging
import os
import ssl
import subprocess
import sys
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto.errors import Malformed
from node import frames, p2p, tls
from node.net import MAX_BODY, Chan, Peer, PeerDown, PeerUp

pytestmark = pytest.mark.parametrize("network", ["node.tls:TlsNet"], indirect=True, ids=["tls"])

PING = frames.HEADER.pack(frames.PING, 0)
CHAIN = "diptych/1/" + hashlib.sha256(b"storage/1").hexdigest()


# -- an attacker made by hand


HUNG_UP = (ConnectionError, asyncio.IncompleteReadError)


def u16(data: bytes) -> bytes:
    return len(data).to_bytes(2) + data


def u24(data: bytes) -> bytes:
    return len(data).to_bytes(3) + data


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2) + u16(data)


def expand(secret: bytes, label: bytes, context: bytes = b"", size: int = 32) -> bytes:
    label = b"tls13 " + label
    info = size.to_bytes(2) + bytes([len(label)]) + label + bytes([len(context)]) + context
    return HKDFExpand(SHA256(), size, info).derive(secret)


def extract(salt: bytes, secret: bytes) -> bytes:
    return hmac.digest(salt, secret, "sha256")


class Keys:
    """One direction of record protection, AES-128-GCM."""

    def __init__(self, secret: bytes) -> None:
        self._aead, self._iv = AESGCM(expand(secret, b"key", size=16)), expand(secret, b"iv", size=12)
        self._count = 0

    def nonce(self) -> bytes:
        self._count += 1
        return (int.from_bytes(self._iv) ^ (self._count - 1)).to_bytes(12)

    def seal(self, kind: int, data: bytes) -> bytes:
        head = b"\x17\x03\x03" + (len(data) + 17).to_bytes(2)
        return head + self._aead.encrypt(self.nonce(), data + bytes([kind]), head)

    def open(self, head: bytes, data: bytes) -> tuple[int, bytes]:
        plain = self._aead.decrypt(self.nonce(), data, head).rstrip(b"\x00")
        return plain[-1], plain[:-1]


class Tls13:
    """A side of one connection that claims `certificate` and signs with `key`, whether or not they belong together."""

    def __init__(self, reader, writer, certificate: bytes, key: Ed25519PrivateKey, protocol: str = CHAIN):
        self._reader, self._writer = reader, writer
        self._certificate, self._key = certificate, key
        self._alpn = extension(16, u16(bytes([len(protocol)]) + protocol.encode()))
        self._share = X25519PrivateKey.generate()
        self._transcript, self._messages = b"", b""
        self._reads: Keys | None = None
        self._writes: Keys | None = None

    async def record(self) -> tuple[int, bytes]:
        while True:
            head = await asyncio.wait_for(self._reader.readexactly(5), 10)
            kind, data = head[0], await self._reader.readexactly(int.from_bytes(head[3:]))
            if kind == 20:  # change_cipher_spec means nothing
                continue
            if kind == 23 and self._reads:
                kind, data = self._reads.open(head, data)
            if kind == 21:
                raise ConnectionAbortedError(f"alert {data[1]}")
            return kind, data

    async def message(self) -> tuple[int, bytes]:
        while len(self._messages) < 4 or len(self._messages) < 4 + int.from_bytes(self._messages[1:4]):
            kind, data = await self.record()
            assert kind == 22
            self._messages += data
        end = 4 + int.from_bytes(self._messages[1:4])
        message, self._messages = self._messages[:end], self._messages[end:]
        self._transcript += message
        return message[0], message[4:]

    def say(self, kind: int, body: bytes) -> None:
        message = bytes([kind]) + u24(body)
        self._transcript += message
        self._writer.write(self._writes.seal(22, message) if self._writes else b"\x16\x03\x03" + u16(message))

    def digest(self) -> bytes:
        return hashlib.sha256(self._transcript).digest()

    def authenticate(self, side: bytes, secret: bytes) -> None:
        self.say(11, b"\x00" + u24(u24(self._certificate) + u16(b"")))
        signed = b" " * 64 + b"TLS 1.3, " + side + b" CertificateVerify\x00" + self.digest()
        self.say(15, b"\x08\x07" + u16(self._key.sign(signed)))
        self.say(20, extract(expand(secret, b"finished"), self.digest()))

    def handshake_secrets(self, share: bytes) -> tuple[bytes, bytes, bytes]:
        nothing = hashlib.sha256().digest()
        early = extract(bytes(32), bytes(32))
        shared = self._share.exchange(X25519PublicKey.from_public_bytes(share))
        secret = extract(expand(early, b"derived", nothing), shared)
        client, server = (expand(secret, side + b" hs traffic", self.digest()) for side in (b"c", b"s"))
        return client, server, extract(expand(secret, b"derived", nothing), bytes(32))

    def key_share(self) -> bytes:
        return b"\x00\x1d" + u16(self._share.public_key().public_bytes_raw())

    async def dial(self) -> bytes:
        """The handshake as client; then the first data of the server."""
        extensions = extension(43, b"\x02\x03\x04") + extension(10, u16(b"\x00\x1d"))
        extensions += extension(13, u16(b"\x08\x07")) + extension(51, u16(self.key_share())) + self._alpn
        self.say(1, b"\x03\x03" + os.urandom(32) + b"\x00" + u16(b"\x13\x01") + b"\x01\x00" + u16(extensions))
        kind, hello = await self.message()
        assert kind == 2
        client, server, master = self.handshake_secrets(hello[hello.index(b"\x00\x1d\x00\x20") + 4 :][:32])
        self._reads = Keys(server)
        while (await self.message())[0] != 20:
            pass
        self._reads = Keys(expand(master, b"s ap traffic", self.digest()))
        self._writes = Keys(client)
        self.authenticate(b"client", client)
        kind, data = await self.record()
        assert kind == 23
        return data

    async def serve(self) -> None:
        """The handshake as server, up to where the client must have judged it."""
        kind, hello = await self.message()
        assert kind == 1
        session = hello[34 : 35 + hello[34]]
        extensions = extension(43, b"\x03\x04") + extension(51, self.key_share())
        client_share = hello[hello.index(b"\x00\x1d\x00\x20") + 4 :][:32]
        self.say(2, b"\x03\x03" + os.urandom(32) + session + b"\x13\x01\x00" + u16(extensions))
        client, server, _ = self.handshake_secrets(client_share)
        self._reads, self._writes = Keys(client), Keys(server)
        self.say(8, u16(self._alpn))
        self.say(13, b"\x00" + u16(extension(13, u16(b"\x08\x07"))))
        self.authenticate(b"server", server)
        assert (await self.message())[0] == 11


@pytest.fixture
async def refusals(caplog):
    """Why handshakes failed on this side, as OpenSSL puts it: the loop tells when it debugs."""
    asyncio.get_running_loop().set_debug(True)
    caplog.set_level(logging.DEBUG, "asyncio")

    def reasons() -> list[str | None]:
        errors = [record.exc_info[1] for record in caplog.records if record.exc_info]
        return [error.reason for error in errors if isinstance(error, ssl.SSLError)]

    return reasons


def key_of(net, name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(net.seeds[name])


def certificate_of(net, name: str) -> bytes:
    return tls._certificate(key_of(net, name).public_key().public_bytes_raw())


@pytest.mark.parametrize("has_the_key", [True, False])
async def test_a_dialler_with_the_certificate_of_a_member_needs_its_key(network, refusals, has_the_key):
    net = network("ab")
    b = await net.start("b")
    reader, writer = await asyncio.open_connection(net.book["b"].host, net.book["b"].port)
    key = key_of(net, "a") if has_the_key else Ed25519PrivateKey.generate()
    attacker = Tls13(reader, writer, certificate_of(net, "a"), key)
    if has_the_key:
        assert await attacker.dial() == PING
        assert await b.next() == PeerUp("a")
    else:
        with pytest.raises(HUNG_UP):
            await attacker.dial()
        await net.until(lambda: b.net.stats()["refused"] == 1)
        assert refusals() == ["BAD_SIGNATURE"]
        assert b.events.empty()
    writer.close()


@pytest.mark.parametrize("has_the_key", [True, False])
async def test_a_server_with_the_certificate_of_a_member_needs_its_key(network, refusals, has_the_key):
    net = network("ab")
    results: asyncio.Queue[object] = asyncio.Queue()

    async def serve(reader, writer):
        key = key_of(net, "b") if has_the_key else Ed25519PrivateKey.generate()
        try:
            results.put_nowait(await Tls13(reader, writer, certificate_of(net, "b"), key).serve())
        except HUNG_UP as error:
            results.put_nowait(error)
        writer.close()

    async with await asyncio.start_server(serve, net.book["b"].host, net.book["b"].port):
        a = await net.start("a")
        result = await asyncio.wait_for(results.get(), 10)
    if has_the_key:
        assert result is None
    else:
        assert isinstance(result, HUNG_UP)
        assert "BAD_SIGNATURE" in refusals()
    assert a.events.empty()


# -- attackers with Python's ssl


def client_context(net, name: str | None, protocol: str | None = CHAIN) -> ssl.SSLContext:
    """What a careless client with the key of `name` would use."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if protocol:
        context.set_alpn_protocols([protocol])
    if name:
        load(context, key_of(net, name), certificate_of(net, name))
    return context


def load(context, key, *chain: bytes) -> None:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    certificates = "".join(map(ssl.DER_cert_to_PEM_cert, chain)).encode()
    with tls._as_path(certificates) as certfile, tls._as_path(pem) as keyfile:
        context.load_cert_chain(certfile, keyfile)


async def dial(net, context) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(net.book["b"].host, net.book["b"].port, ssl=context)


async def assert_refused(net, b, context, *, because: str | None, refusals) -> None:
    """b ends the connection without a byte, in the handshake if `because` says why, and is there for a as before."""
    before = b.net.stats()["refused"]
    with contextlib.suppress(OSError):
        reader, writer = await dial(net, context)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
    await net.until(lambda: b.net.stats()["refused"] == before + 1)
    assert b.events.empty()
    assert because in refusals() if because else not refusals()
    await net.start("a")
    assert await b.next() == PeerUp("a")


async def test_the_careless_client_of_these_tests_is_let_in_with_the_right_key(network):
    net = network("ab")
    b = await net.start("b")
    reader, writer = await dial(net, client_context(net, "a"))
    assert await asyncio.wait_for(reader.readexactly(len(PING)), 10) == PING
    assert await b.next() == PeerUp("a")
    session = writer.get_extra_info("ssl_object").session
    assert session is None or not session.has_ticket
    writer.close()
    assert await b.next() == PeerDown("a", "closed by the peer")


async def test_no_certificate_is_refused(network, refusals):
    net = network("ab")
    await assert_refused(
        net,
        await net.start("b"),
        client_context(net, None),
        because="PEER_DID_NOT_RETURN_A_CERTIFICATE",
        refusals=refusals,
    )


async def test_a_member_that_must_not_dial_is_refused(network, refusals):
    net = network("abc")
    await assert_refused(
        net,
        await net.start("b"),
        client_context(net, "c"),
        because="CERTIFICATE_VERIFY_FAILED",
        refusals=refusals,
    )


async def test_the_first_member_which_dials_all_others_admits_nobody(network):
    net = network("ab")
    a = await net.start("a")
    context = client_context(net, "b")
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection(net.book["a"].host, net.book["a"].port, ssl=context)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
    await net.until(lambda: a.net.stats()["refused"] == 1)
    assert a.events.empty()


@pytest.mark.parametrize("protocol", [None, "diptych/1/" + hashlib.sha256(b"sharing/1").hexdigest(), "h2"])
async def test_a_member_that_does_not_name_this_chain_is_refused(network, refusals, protocol):
    net = network("ab")
    await assert_refused(
        net, await net.start("b"), client_context(net, "a", protocol), because=None, refusals=refusals
    )


@pytest.mark.parametrize("presents_the_member", [True, False])
async def test_a_member_cannot_vouch_for_a_stranger(network, refusals, presents_the_member):
    net = network("ab")
    stranger = Ed25519PrivateKey.generate()
    issuer = x509.load_der_x509_certificate(certificate_of(net, "a"))
    day = datetime.timedelta(1)
    forged = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "diptych")]))
        .issuer_name(issuer.subject)
        .public_key(stranger.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime.now() - day)
        .not_valid_after(datetime.datetime.now() + day)
        .sign(key_of(net, "a"), None)
    )
    context = client_context(net, None)
    chain = [forged.public_bytes(Encoding.DER), certificate_of(net, "a")]
    load(context, stranger, *chain[: 1 + presents_the_member])
    await assert_refused(
        net, await net.start("b"), context, because="CERTIFICATE_VERIFY_FAILED", refusals=refusals
    )


async def test_tls_1_2_is_refused_even_from_a_member(network, refusals):
    net = network("ab")
    context = client_context(net, "a")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    await assert_refused(
        net, await net.start("b"), context, because="UNSUPPORTED_PROTOCOL", refusals=refusals
    )


@pytest.mark.parametrize("speech", [b"GET / HTTP/1.1\r\n\r\n", PING, b"\x16\x03\x01\xff\xff" + bytes(70_000)])
async def test_plaintext_is_refused(network, speech):
    net = network("ab")
    b = await net.start("b")
    reader, writer = await asyncio.open_connection(net.book["b"].host, net.book["b"].port)
    writer.write(speech)
    with contextlib.suppress(ConnectionError):
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer == b"" or answer[0] == 21  # an alert
    writer.close()
    await net.until(lambda: b.net.stats()["refused"] == 1)
    await net.start("a")
    assert await b.next() == PeerUp("a")


# -- members that misbehave


@pytest.mark.parametrize(
    "speech",
    [
        frames.HEADER.pack(Chan.VOTE, MAX_BODY[Chan.VOTE] + 1),
        frames.HEADER.pack(Chan.PROPOSAL, MAX_BODY[Chan.PROPOSAL] + 1),
        frames.HEADER.pack(Chan.TX, 2**32 - 1),
        frames.HEADER.pack(frames.PING, 1),
        frames.HEADER.pack(7, 0),
        frames.HEADER.pack(Chan.SYNC, 200_000) + bytes(tls._PIECE) + frames.HEADER.pack(Chan.SYNC, 200_000),
        frames.HEADER.pack(Chan.SYNC, 200_000) + bytes(tls._PIECE) + frames.HEADER.pack(Chan.SYNC, 0),
    ],
    ids=["vote", "proposal", "tx", "ping", "channel", "piece-too-large", "piece-too-small"],
)
async def test_an_oversize_or_malformed_frame_ends_the_link_before_its_body(network, speech):
    net = network("ab")
    b = await net.start("b")
    reader, writer = await dial(net, client_context(net, "a"))
    writer.write(PING + speech)
    assert await b.next() == PeerUp("a")
    assert await b.next() == PeerDown("a", "sent a frame that is too large or malformed")
    with contextlib.suppress(ConnectionError):
        assert (await asyncio.wait_for(reader.read(), 10)).strip(PING) == b""
    writer.close()
    await net.start("a")
    assert await b.next() == PeerUp("a")


async def test_a_member_that_connects_again_and_again_holds_one_connection(network):
    net = network("ab")
    b = await net.start("b")
    held = [await dial(net, client_context(net, "a")) for _ in range(10)]
    for reader, _ in held[:-1]:
        with contextlib.suppress(ConnectionError):
            assert (await asyncio.wait_for(reader.read(), 10)) in (PING, b"")
    assert await held[-1][0].readexactly(len(PING)) == PING
    assert await b.next() == PeerUp("a")
    for _ in range(9):
        assert await b.next() == PeerDown("a", "replaced by a newer connection")
        assert await b.next() == PeerUp("a")
    assert b.events.empty()
    for _, writer in held:
        writer.close()


# -- what is sent and kept


async def test_nothing_secret_is_logged(network, caplog):
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    net = network("ab")
    a, b = await net.start_all()
    a.net.broadcast(Chan.TX, b"SECRET" * 1000)
    await b.received(1)
    _, writer = await dial(net, client_context(net, "a"))
    writer.write(frames.HEADER.pack(7, 0) + b"SECRET" * 1000)
    await b.until_down("a")
    writer.close()
    await a.net.stop()
    text = "\n".join(record.getMessage() + str(record.exc_info) for record in caplog.records)
    assert "SECRET" not in text
    assert not any(net.seeds[name].hex() in text or repr(net.seeds[name]) in text for name in "ab")


# -- identities and certificates


def test_peer_ids_are_those_of_libp2p(network):
    for _ in range(50):
        seed = os.urandom(32)
        assert tls.identity_of(seed) == p2p.identity_of(seed)


RSA = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
SECP256K1 = "16Uiu2HAmLhLvBoYaoZfaMUKuibM6ac163GwKY74c5kiSLg5KvLpY"
GOOD = tls.identity_of(bytes(32))


@pytest.mark.parametrize(
    "identity", ["", "1", RSA, SECP256K1, "1" + GOOD, GOOD + "1", GOOD[1:], GOOD + " ", GOOD[:-1], "é" * 52]
)
def test_identities_that_spell_out_no_ed25519_key_are_refused(network, identity):
    with pytest.raises(Malformed, match="'b'"):
        network("ab").make("a", peers=[Peer("b", identity, "127.0.0.1", 1)])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(identity=st.text(st.sampled_from(tls._BASE58), min_size=45, max_size=60) | st.text())
def test_an_identity_has_one_spelling(network, identity):
    with contextlib.suppress(ValueError):
        assert tls._peer_id(tls._public_key(identity)) == identity


def test_the_form_of_the_certificate_never_changes(network):
    """Nodes of any version must make the same bytes of a key."""
    certificate = tls._certificate(bytes(range(32)))
    assert hashlib.sha256(certificate).hexdigest()[:16] == "29c1b327d3124a60"
    parsed = x509.load_der_x509_certificate(certificate)
    assert parsed.public_key().public_bytes_raw() == bytes(range(32))
    assert parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert parsed.not_valid_before_utc.year == 2000
    assert parsed.not_valid_after_utc.year == 9999
    assert parsed.issuer != parsed.subject


def test_it_does_not_need_libp2p(network):
    code = (
        "import sys, node.tls; sys.exit(any(name in sys.modules for name in ('libp2p', 'trio', 'multiaddr')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_the_key_never_goes_through_a_file(network):
    opened: list[object] = []
    tests = threading.current_thread()

    def watch(event, arguments):
        if event == "open" and threading.current_thread() is tests:
            opened.append(arguments[0])

    sys.addaudithook(watch)
    net = network("ab")
    await net.start_all()
    assert all(isinstance(path, int) for path in opened), "only the pipes are opened"
