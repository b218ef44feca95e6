"""Frames, from the queue of one side to the cutter of the other."""

from hypothesis import given
from hypothesis import strategies as st

from node import frames
from node.net import MAX_BODY, Chan

PIECE = 64 << 10


def test_urgent_frames_pass_between_the_pieces_of_a_block():
    queues = frames.Queues(frames.LIMITS, PIECE)
    assert queues.put(Chan.PROPOSAL, bytes(MAX_BODY[Chan.PROPOSAL]))
    assert len(queues.take()) <= frames.HEADER.size + PIECE
    assert queues.put(Chan.VOTE, b"vote")
    assert queues.take().startswith(frames.HEADER.pack(Chan.VOTE, 4) + b"vote")


bodies = st.lists(st.tuples(st.sampled_from(list(Chan)), st.binary(max_size=100)), max_size=30)


@given(
    sent=bodies,
    cuts=st.lists(st.integers(1, 40), min_size=1),
    late=st.integers(0, 30),
    piece=st.sampled_from([16, 1 << 20]),
)
def test_frames_come_out_whole_however_the_stream_is_cut(sent, cuts, late, piece):
    queues, cutter = frames.Queues(frames.LIMITS, piece), frames.Cutter(frames.LIMITS, piece)
    for chan, body in sent[late:]:
        assert queues.put(chan, body)
    stream = queues.take()
    for chan, body in sent[:late]:
        assert queues.put(chan, body)
    while more := queues.take():
        stream += more
    assert not any(queues._held.values())
    seen: list[tuple[Chan, bytes]] = []
    turn = 0
    while stream:
        size = cuts[turn % len(cuts)]
        seen += cutter.cut(stream[:size])
        stream, turn = stream[size:], turn + 1
    for chan in Chan:
        assert [body for c, body in seen if c is chan] == [
            b for c, b in sent[late:] + sent[:late] if c is chan
        ]
