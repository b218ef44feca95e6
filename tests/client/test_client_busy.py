"""What a client does when nodes say that they have too much to do."""

import time
from collections.abc import Iterator

import httpx2
import pytest
from light_world import HEIGHT_OF_STORY, USER, World, shown

from client.web import Busy, checked
from crypto.errors import Unavailable
from protocol.tx import Request

ACTION = Request(bytes(16), "research")


class Statuses:
    """What a node answers to transactions, the last status for ever; the time of each request is kept."""

    def __init__(self, world: World, *statuses: int, retry_after: str = "1") -> None:
        self.asked: list[float] = []
        self._world, self._left, self._retry_after = world, list(statuses), retry_after

    def __call__(self, raw: bytes) -> tuple[int, bytes, dict[str, str]]:
        self.asked.append(time.monotonic())
        status = self._left.pop(0) if len(self._left) > 1 else self._left[0]
        if status == 200:
            return 200, shown(self._world.history.include(raw)), {}
        return status, b'{"detail": "full"}', {"retry-after": self._retry_after} if status == 503 else {}


@pytest.fixture
def world(tmp_path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def test_a_busy_node_is_left_alone_for_as_long_as_it_asks_and_then_asked_again(world):
    for member in world.members:
        member.on_post = Statuses(world, 503, 200)
    assert world.client.send(USER, ACTION, 20).height == HEIGHT_OF_STORY + 1
    (again,) = [m.on_post.asked for m in world.members if len(m.on_post.asked) == 2]
    assert again[1] - again[0] >= 1


def test_another_node_is_asked_at_once_and_the_busy_ones_not_meanwhile(world):
    for member in world.members:
        member.on_post = Statuses(world, 503, retry_after="30")
    slow = world.members[2].on_post = Statuses(world, 202, 202, 202, 200)
    assert world.client.send(USER, ACTION, 20).height == HEIGHT_OF_STORY + 1
    assert len(slow.asked) == 4
    assert all(len(m.on_post.asked) <= 1 for m in world.members if m.on_post is not slow)


def test_waiting_for_busy_nodes_ends_with_the_time_given(world):
    for member in world.members:
        member.on_post = Statuses(world, 503, retry_after="30")
    with pytest.raises(Unavailable, match="full"):
        world.client.send(USER, ACTION, 0.3)
    assert all(len(m.on_post.asked) == 1 for m in world.members)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7), ("0", 0), ("999", 30), ("9" * 40, 1), ("", 1), ("-5", 1), ("soon", 1), ("1e9", 1), ("²", 1)],
)
def test_only_sensible_requests_to_wait_are_taken(text, seconds):
    headers = [(b"Retry-After", text.encode())]
    with pytest.raises(Busy) as caught:
        checked(httpx2.Response(503, headers=headers, json={"detail": "full"}))
    assert caught.value.seconds == seconds
