"""What nodes say of a person is believed once a quorum of them says the same."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import msgspec
import pytest

from client.chain import ChainClient
from crypto.codec import encode
from crypto.errors import NotFound, Unauthentic, Unavailable
from crypto.sign import SigningKey
from protocol.contract import Person
from protocol.genesis import Genesis, Member
from protocol.identity import Credential, SignedCredential
from protocol.network import ChainAddresses, NodeAddress
from tests.dealer import share_point

AUTHORITY, SUBJECT = SigningKey(b"a" * 32), SigningKey(b"s" * 32).public
CREDENTIAL = Credential(SUBJECT, "user", ("role:researcher",), bytes(32), None, 0, 2**60)
CERTIFIED = Person(SignedCredential.issue(CREDENTIAL, AUTHORITY), False)
REVOKED = msgspec.structs.replace(CERTIFIED, is_revoked=True)
FORGED = Person(SignedCredential.issue(CREDENTIAL, SigningKey(b"f" * 32)), False)
UNKNOWN, BROKEN, JUNK = "unknown", "broken", "junk"


@pytest.fixture
def chain() -> Iterator[Callable[..., ChainClient]]:
    """A chain whose nodes say these things; None is a node that is down."""
    servers: list[ThreadingHTTPServer] = []
    clients: list[ChainClient] = []

    def serve(said: Person | str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.path == f"/v1/identity/{SUBJECT.hex()}"
                status, body = 404, {"detail": "nobody"}
                if asked and isinstance(said, Person):
                    status, body = 200, {"encoded": encode(said).hex()}
                elif asked and said != UNKNOWN:
                    status, body = (500, {}) if said == BROKEN else (200, {"encoded": "zz"})
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    def make(*said: Person | str | None) -> ChainClient:
        keys = [SigningKey(bytes([i + 1]) * 32).public for i in range(len(said))]
        members = tuple(Member(f"n{i}", key, f"p{i}", share_point(i)) for i, key in enumerate(keys))
        genesis = Genesis("diptych/1/storage/x", "storage", "bft", members, AUTHORITY.public, 0)
        urls = [serve(what) if what is not None else "http://127.0.0.1:1" for what in said]
        nodes = {f"n{i}": NodeAddress("127.0.0.1:1", url) for i, url in enumerate(urls)}
        clients.append(ChainClient(genesis, ChainAddresses("g", "0" * 64, nodes)))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("fourth", [CERTIFIED, REVOKED, FORGED, UNKNOWN, BROKEN, JUNK, None])
def test_three_of_four_nodes_are_believed_whatever_the_fourth_says(chain, fourth):
    assert chain(CERTIFIED, fourth, CERTIFIED, CERTIFIED).agreed_person(SUBJECT) == CERTIFIED
    assert chain(REVOKED, REVOKED, fourth, REVOKED).agreed_person(SUBJECT) == REVOKED


def test_one_node_can_neither_hide_a_revocation_nor_make_one_up(chain):
    with pytest.raises(Unavailable, match="no 3 nodes"):
        chain(CERTIFIED, REVOKED, REVOKED, None).agreed_person(SUBJECT)
    with pytest.raises(Unavailable, match="no 3 nodes"):
        chain(REVOKED, CERTIFIED, CERTIFIED, BROKEN).agreed_person(SUBJECT)


def test_a_quorum_that_knows_nobody_is_believed_and_less_is_not(chain):
    with pytest.raises(NotFound, match="not certified"):
        chain(UNKNOWN, UNKNOWN, UNKNOWN, CERTIFIED).agreed_person(SUBJECT)
    with pytest.raises(Unavailable):
        chain(UNKNOWN, UNKNOWN, CERTIFIED, CERTIFIED).agreed_person(SUBJECT)


def test_even_all_nodes_together_certify_nobody(chain):
    with pytest.raises(Unauthentic):
        chain(FORGED, FORGED, FORGED, FORGED).agreed_person(SUBJECT)
