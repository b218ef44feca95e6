"""The pairing libraries against one another: `mcl` is the fast one, `mcl-plain` and `arkworks` are its oracles."""

import ctypes
import hashlib
import itertools
import json
import os
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import msgspec
import py_arkworks_bls12381 as ark
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto import abe, fabeo, fame, group
from crypto.codec import encode
from crypto.errors import Denied, DiptychError, Malformed, Unauthentic, Unavailable
from crypto.group import BACKENDS, G1, G2, ORDER
from crypto.pairing import backend as pairing
from crypto.pairing.backend import COMPRESSED, FIELD, self_test

LIBRARIES = {name: make() for name, make in BACKENDS.items()}
VECTORS = Path(__file__).parents[2].parent / "shared/data/vectors"
scalars = st.one_of(st.integers(0, 20), st.integers(ORDER - 20, ORDER - 1), st.integers(0, ORDER - 1))
curves = pytest.mark.parametrize("curve", ["g1", "g2"])
fuzzed = settings(max_examples=60, deadline=None)


def same(values):
    """The value that all of `values`, by library, have."""
    assert len(set(values.values())) == 1, values
    return next(iter(values.values()))


def by_library(function):
    return {name: function(library) for name, library in LIBRARIES.items()}


@contextmanager
def computing_with(name):
    assert group.use(name).name == name
    try:
        yield
    finally:
        group.use()


# --- one wire format ---


@curves
@fuzzed
@given(k=scalars)
def test_all_libraries_write_the_same_point_and_take_it_back(curve, k):
    def written(library):
        c = getattr(library, curve)
        point = c.multiply(c.generator, k)
        [data] = c.encode([point])
        if k % ORDER:
            assert c.equal(c.decode(data, True), point)
            assert c.encode([c.negate(c.decode(data, False))])[0][1:] == data[1:]
        assert c.is_identity(point) == (k % ORDER == 0)
        return data

    same(by_library(written))


@curves
def test_the_first_thousand_multiples_of_the_generators_are_written_alike(curve):
    digests = {}
    for name, library in LIBRARIES.items():
        c = getattr(library, curve)
        multiples = list(
            itertools.accumulate([c.generator] * 1000, c.add, initial=c.multiply(c.generator, 0))
        )
        digests[name] = hashlib.sha256(b"".join(c.encode(multiples[:1000]))).hexdigest()
    same(digests)


PUBLISHED_MULTIPLES = {
    (
        "g1",
        2,
    ): "a572cbea904d67468808c8eb50a9450c9721db309128012543902d0ac358a62ae28f75bb8f1c7c42c39a8c5529bf0f4e",
    (
        "g1",
        3,
    ): "89ece308f9d1f0131765212deca99697b112d61f9be9a5f1f3780a51335b3ff981747a0b2ca2179b96d2c0c9024e5224",
    (
        "g2",
        2,
    ): "aa4edef9c1ed7f729f520e47730a124fd70662a904ba1074728114d1031e1572c6c886f6b57ec72a6178288c47c33577"
    "1638533957d540a9d2370f17cc7ed5863bc0b995b8825e0ee1ea1e1e4d00dbae81f14b0bf3611b78c952aacab827a053",
}


@pytest.mark.parametrize(("curve", "k"), PUBLISHED_MULTIPLES)
def test_multiples_of_the_generators_are_written_as_published(curve, k):
    """2 g1 and 3 g1 are the public keys of the secret keys 2 and 3 in Ethereum's BLS signatures."""
    for library in LIBRARIES.values():
        c = getattr(library, curve)
        assert c.encode([c.multiply(c.generator, k)])[0].hex() == PUBLISHED_MULTIPLES[curve, k]


@curves
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_all_libraries_take_and_refuse_the_same_bytes(curve, data):
    size = 48 if curve == "g1" else 96
    coordinate = st.one_of(
        st.integers(0, 40),
        st.integers(FIELD - 20, FIELD + 20),
        st.integers(0, 2**381 - 1),
        st.just(2**381 - 1),
    )
    parts = [data.draw(coordinate).to_bytes(48, "big") for _ in range(size // 48)]
    raw = b"".join(parts)
    raw = bytes([COMPRESSED | data.draw(st.sampled_from([0, 0x20])) | raw[0] & 0x1F]) + raw[1:]

    def taken(library, in_group):
        c = getattr(library, curve)
        try:
            point = c.decode(raw, in_group)
        except ValueError:
            return None
        assert c.encode([point]) == [raw]
        return raw

    same(by_library(lambda library: taken(library, True)))
    assert taken(LIBRARIES["mcl"], False) == taken(LIBRARIES["arkworks"], False)


@pytest.mark.skipif(not VECTORS.is_dir(), reason="the folder of published vectors is not here")
@pytest.mark.parametrize("name", BACKENDS)
def test_bls_signatures_verify_as_wycheproof_says(name):
    """What a signature needs of us: decoding in both groups, and a product of two pairings."""
    tests = json.loads((VECTORS / "bls_sig_g2_basic_verify_test.json").read_text())["testGroups"]
    seen = 0
    with computing_with(name):
        for each in tests:
            dst = each["ciphersuite"].encode()
            for case in each["tests"]:
                seen += 1
                message = bytes.fromhex(case["msg"])
                hashed = ark.G2Point.hash_to_curve(message, dst).to_compressed_bytes()
                try:
                    public = G1.from_bytes(bytes.fromhex(each["publicKey"]["pk"]))
                    signature = G2.from_bytes(bytes.fromhex(case["sig"]))
                except Malformed:
                    valid = False
                else:
                    pairs = [(public, G2.from_bytes(hashed)), (-group.G1_GENERATOR, signature)]
                    valid = group.pairing_product(pairs) == group.gt_generator() ** 0
                assert valid == (case["result"] == "valid"), case["tcId"]
    assert seen == 88


# --- the same answers ---


@settings(max_examples=20, deadline=None)
@given(message=st.binary(max_size=300), dst=st.binary(min_size=1, max_size=255))
def test_all_libraries_hash_to_the_same_point(message, dst):
    same(by_library(lambda library: library.g1.encode([library.hash_to_g1(message, dst)])[0]))


@curves
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_multi_exponentiations_of_any_shape_are_sums_of_products(curve, data):
    sizes = data.draw(st.lists(st.one_of(st.integers(1, 4), st.integers(1, 40)), min_size=1, max_size=12))
    shape = [[(data.draw(scalars), data.draw(scalars)) for _ in range(size)] for size in sizes[:6]]
    shape += [[(i + 1, ORDER - i) for i in range(size)] for size in sizes[6:]]

    def combined(library):
        c = getattr(library, curve)
        rows = [[(c.multiply(c.generator, p), s) for p, s in row] for row in shape]
        return tuple(c.encode(c.combine(rows)))

    c = LIBRARIES["arkworks"].g1 if curve == "g1" else LIBRARIES["arkworks"].g2
    wanted = [c.multiply(c.generator, sum(p * s for p, s in row) % ORDER) for row in shape]
    assert combined(LIBRARIES["mcl"]) == tuple(c.encode(wanted))
    if sum(sizes) < 60:
        same(by_library(combined))


def test_multi_exponentiations_of_every_number_of_terms_around_a_block_are_right():
    c = LIBRARIES["mcl"].g1
    for size, count in itertools.product((1, 2, 3), range(1, 40)):
        rows = [[(c.generator, 100 * i + j) for j in range(size)] for i in range(count)]
        wanted = [c.multiply(c.generator, sum(s for _, s in row)) for row in rows]
        assert c.encode(c.combine(rows)) == c.encode(wanted)


def test_without_avx512_multi_exponentiations_are_the_same(monkeypatch):
    c = LIBRARIES["mcl"].g1
    rows = [[(c.generator, 7 * i), (c.generator, ORDER - i)] for i in range(30)]
    fast = c.encode(c.combine(rows))
    monkeypatch.setattr(c, "_has_blocks", False)
    assert c.encode(c.combine(rows)) == fast


@settings(max_examples=10, deadline=None)
@given(pairs=st.lists(st.tuples(scalars, scalars), min_size=1, max_size=6), power=scalars)
def test_all_libraries_give_the_same_products_of_pairings_and_powers_of_them(pairs, power):
    def product(library):
        g1, g2 = library.g1, library.g2
        points = [(g1.multiply(g1.generator, a), g2.multiply(g2.generator, b)) for a, b in pairs]
        element = library.pairing_product(points)
        powered = library.gt_power(element, power)
        return library.gt_encode(element), library.gt_encode(library.gt_multiply(powered, element))

    element, _ = same(by_library(product))
    library = LIBRARIES["arkworks"]
    one = library.pairing_product([(library.g1.generator, library.g2.generator)])
    assert library.gt_encode(library.gt_power(one, sum(a * b for a, b in pairs) % ORDER)) == element


@pytest.mark.parametrize("name", BACKENDS)
def test_a_table_gives_the_same_multiples_as_no_table(name):
    edges = [
        0,
        1,
        2,
        255,
        256,
        257,
        2**248,
        ORDER - 1,
        ORDER,
        ORDER + 3,
        -1,
        *(2**i - 1 for i in range(0, 256, 31)),
    ]
    with computing_with(name):
        element = group.pairing_product([(group.G1_GENERATOR, group.G2_GENERATOR)])
        for base in (group.G1_GENERATOR * 5, group.G2_GENERATOR * 5):
            tabled = base.as_base()
            tabled._table.build()
            assert [tabled * k == base * k for k in edges] == [True] * len(edges)
        tabled = element.as_base()
        tabled._table.build()
        assert [tabled**k == element**k for k in edges] == [True] * len(edges)


def test_a_table_is_made_only_for_what_is_multiplied_often():
    base = (group.G1_GENERATOR * 5).as_base()
    for k in range(1, 80):
        assert base * k == group.G1_GENERATOR * (5 * k)
        assert bool(base._table._places) == (k > group._WORTH_A_TABLE)


@pytest.fixture
def no_forced_turns():
    """Threads take turns only where one sets the interpreter's lock free by itself."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("work", ["pairings", "multiplications", "multi-exponentiation"])
def test_other_threads_run_while_mcl_is_at_long_work(no_forced_turns, work):
    library, count = LIBRARIES["mcl"], 1600
    g1, g2 = library.g1.generator * count, library.g2.generator * count
    buffer, scalars = ctypes.create_string_buffer(g1), bytes(range(1, 33)) * count
    calls = {
        "pairings": lambda: library._miller(ctypes.create_string_buffer(576), g1, g2, count),
        "multiplications": lambda: library.g1._mul_each(buffer, scalars, count),
        "multi-exponentiation": lambda: library.g2._mul_vec(
            ctypes.create_string_buffer(288), g2, scalars, count
        ),
    }
    call, begun, done = calls[work], threading.Event(), threading.Event()

    def compute():
        begun.set()
        call()
        done.set()

    thread = threading.Thread(target=compute)
    thread.start()
    begun.wait()
    turns_before_the_end = [not done.is_set() for _ in range(100)]
    thread.join()
    assert all(turns_before_the_end)


# --- headers and keys of one under the other ---

A, B, C = "has:a", "has:b", "has:c"
POLICY = f"({A} and {B}) or 2 of ({A}, {B}, {C})"
CONTEXT = b"record 7"
pairs_of_libraries = pytest.mark.parametrize(("maker", "user"), list(itertools.permutations(BACKENDS, 2)))
schemes = pytest.mark.parametrize("scheme", [fabeo, fame], ids=["fabeo", "fame"])


@schemes
@pairs_of_libraries
def test_keys_and_headers_of_one_library_serve_under_another(maker, user, scheme):
    with computing_with(maker):
        master = scheme.MasterKey.generate()
        public, key = master.public.to_bytes(), master.issue([A, C]).to_bytes()
        master = master.to_bytes()
        header, secret = abe.encapsulate(scheme.PublicKey.from_bytes(public), POLICY, CONTEXT)
    with computing_with(user):
        restored = scheme.MasterKey.from_bytes(master)
        assert restored.public.to_bytes() == public
        for holder in (scheme.AttributeKey.from_bytes(key), restored.issue([B, C])):
            opened = abe.decapsulate(scheme.PublicKey.from_bytes(public), holder, POLICY, header, CONTEXT)
            assert opened == secret
        with pytest.raises(Denied):
            abe.decapsulate(restored.public, restored.issue([C]), POLICY, header, CONTEXT)


@schemes
def test_the_same_draws_give_the_same_keys_and_headers_under_every_library(scheme):
    made = {}
    for name in BACKENDS:
        with computing_with(name):
            counter = itertools.count()
            master = scheme.MasterKey.generate(lambda size, c=counter: bytes([next(c) % 256]) * size)
            header, secret = abe.encapsulate(master.public, POLICY, CONTEXT, lambda size: b"r" * size)
            key = master.issue([A, B], lambda size, c=counter: bytes([next(c) % 256]) * size)
            made[name] = (master.to_bytes(), master.public.to_bytes(), key.to_bytes(), header, secret)
    same(made)


def test_parts_of_keys_from_different_libraries_do_not_combine():
    """Two colluders, one served by each library, put their keys together."""
    with computing_with("arkworks"):
        master = fabeo.MasterKey.generate()
        one, secret_key = master.issue([A]).to_bytes(), master.to_bytes()
    with computing_with("mcl"):
        master = fabeo.MasterKey.from_bytes(secret_key)
        two = master.issue([B]).to_bytes()
        header, _ = abe.encapsulate(master.public, f"{A} and {B}", CONTEXT)
        (suite, names, *first), (_, other_names, *second) = map(msgspec.msgpack.decode, (one, two))
        for base, randomizer in itertools.product((0, 1), repeat=2):
            pooled = [(first, second)[base][0], first[1] + second[1], (first, second)[randomizer][2]]
            key = fabeo.AttributeKey.from_bytes(encode((suite, names + other_names, *pooled)))
            assert key.attributes == {A, B}
            with pytest.raises(Unauthentic):
                abe.decapsulate(master.public, key, f"{A} and {B}", header, CONTEXT)


def outcome(public, key, header):
    try:
        return abe.decapsulate(
            fabeo.PublicKey.from_bytes(public), fabeo.AttributeKey.from_bytes(key), POLICY, header, CONTEXT
        )
    except DiptychError as error:
        return type(error)


def test_a_changed_header_fares_alike_under_every_library():
    """Else whoever changes it would look for readers whose library lets it pass."""
    master = fabeo.MasterKey.generate()
    public, key = master.public.to_bytes(), master.issue([A, B, C]).to_bytes()
    header, secret = abe.encapsulate(master.public, POLICY, CONTEXT)
    suite, seeds, rows, masked = msgspec.msgpack.decode(header)
    negated = bytes([rows[0] ^ 0x20]) + rows[1:]
    x = int.from_bytes(rows[:48], "big") % 2**381
    above_the_field = (
        ((x + FIELD) | COMPRESSED << 376).to_bytes(48, "big")
        if x + FIELD < 2**381
        else b"\x9f" + b"\xff" * 47
    )
    outside = b"\x80" + (4).to_bytes(47, "big")
    off_the_curve = b"\x80" + (1).to_bytes(47, "big")
    changed = [
        encode((suite, seeds, first + rows[48:], masked))
        for first in (negated[:48], above_the_field, outside, off_the_curve, b"\xc0" + bytes(47), rows[48:96])
    ]
    changed += [
        encode((suite, first + seeds[96:], rows, masked))
        for first in (
            bytes([seeds[0] ^ 0x20]) + seeds[1:96],
            b"\x80" + (2).to_bytes(95, "big"),
            b"\x80" + (1).to_bytes(95, "big"),
            seeds[96:192],
        )
    ]
    fared = {}
    for name in BACKENDS:
        with computing_with(name):
            assert outcome(public, key, header) == secret
            fared[name] = tuple(outcome(public, key, each) for each in changed)
            assert set(fared[name]) <= {Malformed, Unauthentic}
    opened = {name: tuple(isinstance(each, bytes) for each in outcomes) for name, outcomes in fared.items()}
    same(opened)


# --- points of one library in the hands of another ---


@pairs_of_libraries
def test_points_of_one_library_are_not_computed_with_in_another(maker, user):
    p, q = LIBRARIES[maker].g1.generator, LIBRARIES[maker].g2.generator
    other = LIBRARIES[user]
    for misuse in (
        lambda: other.g1.add(other.g1.generator, p),
        lambda: other.g1.combine([[(p, 5), (p, 6)]]),
        lambda: other.g2.multiply(q, 5),
        lambda: other.pairing_product([(p, q)]),
        lambda: other.g1.encode([p]),
    ):
        with pytest.raises((TypeError, AttributeError, ctypes.ArgumentError)):
            misuse()


def test_points_of_one_group_are_not_added_to_those_of_the_other():
    with pytest.raises(TypeError):
        group.G1_GENERATOR + group.G2_GENERATOR
    with pytest.raises(TypeError):
        group.G2_GENERATOR - group.G1_GENERATOR
    with pytest.raises(TypeError):
        group.pairing_product([(group.G2_GENERATOR, group.G1_GENERATOR)])
    with pytest.raises(TypeError):
        G1.encode([group.G1_GENERATOR, group.G2_GENERATOR])
    for one, other in ((group.G1_GENERATOR, G2), (group.G2_GENERATOR, G1)):
        for row in ([(one, 1), (one, 1)], [(one, 5)], [(one, 5), (one, 6)]):
            with pytest.raises(TypeError):
                other.combine([row])
        with pytest.raises(TypeError):
            group.gt_generator() * one
    assert group.G1_GENERATOR != group.G2_GENERATOR


# --- the choice at the start ---


@pytest.mark.parametrize("name", BACKENDS)
def test_every_library_passes_its_self_test_and_can_be_chosen(name):
    self_test(LIBRARIES[name])
    with computing_with(name):
        assert group.G1_GENERATOR.to_bytes() == pairing.G1_GENERATOR


def test_the_fastest_library_is_chosen_and_an_unknown_one_refused_by_name():
    assert group.use() == group.Choice("mcl", ())
    assert group.use().notice is None
    with pytest.raises(Malformed, match=r"pbc.*mcl, mcl-plain, arkworks"):
        group.use("pbc")


class Broken:
    """A library with one operation that goes wrong."""

    def __init__(self, whole, part, operation, wrong):
        self._whole, self._part = whole, part
        self._operation, self._wrong = operation, wrong

    def __getattr__(self, name):
        found = getattr(self._whole, name)
        if self._part and name == self._part:
            return Broken(found, None, self._operation, self._wrong)
        return self._wrong(found) if not self._part and name == self._operation else found


def crashes(_):
    def broken(*_):
        raise ZeroDivisionError("the library gave up")

    return broken


def says_yes(_):
    return lambda *_: True


def says_no(_):
    return lambda *_: False


def takes_first(found):
    return lambda first, *_: first


def swaps_two(found):
    return lambda rows: found([rows[1], rows[0], *rows[2:]] if len(rows) > 1 else rows)


def off_by_one(found):
    return lambda element, scalar: found(element, scalar + 1)


def ignores_the_top(found):
    return lambda element, scalar: found(element, scalar % 2**250)


def checks_nothing(found):
    return lambda data, _: found(data, False)


def forgets_the_sign(found):
    return lambda points: [bytes([data[0] & ~0x20]) + data[1:] for data in found(points)]


def other_tag(found):
    return lambda message, dst: found(message, dst + b"!")


def first_pair_only(found):
    return lambda pairs: found(pairs[:1])


BREAKAGES = [
    *((part, "add", takes_first) for part in ("g1", "g2")),
    *((part, "negate", takes_first) for part in ("g1", "g2")),
    *(
        (part, "multiply", wrong)
        for part in ("g1", "g2")
        for wrong in (takes_first, off_by_one, ignores_the_top)
    ),
    *((part, "combine", swaps_two) for part in ("g1", "g2")),
    *((part, "equal", wrong) for part in ("g1", "g2") for wrong in (says_yes, says_no)),
    *((part, "is_identity", wrong) for part in ("g1", "g2") for wrong in (says_yes, says_no)),
    *((part, "decode", wrong) for part in ("g1", "g2") for wrong in (checks_nothing, crashes)),
    *((part, "encode", wrong) for part in ("g1", "g2") for wrong in (crashes, forgets_the_sign)),
    (None, "hash_to_g1", other_tag),
    (None, "pairing_product", first_pair_only),
    (None, "pairing_product", crashes),
    (None, "gt_multiply", takes_first),
    (None, "gt_power", off_by_one),
    (None, "gt_power", ignores_the_top),
    (None, "gt_encode", crashes),
]


@pytest.mark.parametrize(("part", "operation", "wrong"), BREAKAGES)
def test_a_library_that_computes_wrongly_is_refused_and_the_next_one_taken(
    monkeypatch, part, operation, wrong
):
    monkeypatch.setitem(BACKENDS, "mcl", lambda: Broken(LIBRARIES["mcl"], part, operation, wrong))
    try:
        chosen = group.use()
        assert chosen.name == "mcl-plain"
        [notice] = chosen.refused
        assert notice.startswith("mcl: ")
        assert group.chosen() == chosen
        assert notice in chosen.notice
        assert group.G1_GENERATOR.to_bytes() == pairing.G1_GENERATOR
    finally:
        monkeypatch.undo()
        group.use()


def test_a_build_of_mcl_that_is_not_the_known_one_is_refused(monkeypatch):
    from crypto.pairing import mcl

    for name in ("_VERSION", "_BLS12_381", "_FP", "_FR"):
        with monkeypatch.context() as patched:
            patched.setattr(mcl, name, 7)
            with pytest.raises(pairing.Broken):
                mcl.Mcl()


def test_a_preferred_library_that_is_broken_gives_way_and_none_at_all_is_an_error(monkeypatch):
    for name in ("arkworks", "mcl"):
        monkeypatch.setitem(BACKENDS, name, crashes(None))
    try:
        chosen = group.use("arkworks")
        assert chosen.name == "mcl-plain"
        assert [notice.split(":")[0] for notice in chosen.refused] == ["arkworks", "mcl"]
        monkeypatch.setitem(BACKENDS, "mcl-plain", crashes(None))
        with pytest.raises(Unavailable, match=r"mcl-plain.*the library gave up"):
            group.use()
    finally:
        monkeypatch.undo()
        group.use()


# --- randomness across processes ---


def from_forked_children(count, make):
    made = []
    for _ in range(count):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(make())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            made.append(pipe.read())
        os.waitpid(child, 0)
    return made


@pytest.mark.parametrize("name", BACKENDS)
def test_forked_workers_never_share_the_randomness_of_keys_or_headers(name):
    with computing_with(name):
        master = fabeo.MasterKey.generate()
        key, (header, _) = master.issue([A]), abe.encapsulate(master.public, A, CONTEXT)

        def work():
            return encode((master.issue([A]).to_bytes(), abe.encapsulate(master.public, A, CONTEXT)[0]))

        made = [key.to_bytes(), header]
        for output in from_forked_children(4, work):
            made += msgspec.msgpack.decode(output)
    assert len(made) == len(set(made)) == 10
    parts = [part for each in made for part in msgspec.msgpack.decode(each)[2:]]
    points = [part for part in parts if isinstance(part, bytes)]
    assert len(points) == len(set(points))


# --- decoders ---

MASTER = fabeo.MasterKey.generate()
KEY = MASTER.issue([A, B])
WIRES = {
    "public": (fabeo.PublicKey.from_bytes, MASTER.public.to_bytes()),
    "attribute": (fabeo.AttributeKey.from_bytes, KEY.to_bytes()),
    "master": (fabeo.MasterKey.from_bytes, MASTER.to_bytes()),
    "G1": (G1.from_bytes, group.G1_GENERATOR.to_bytes()),
    "G1 to compare": (G1.from_bytes_to_compare, group.G1_GENERATOR.to_bytes()),
    "G2": (G2.from_bytes, group.G2_GENERATOR.to_bytes()),
    "scalar": (group.scalar_from_bytes, group.scalar_to_bytes(5)),
}


@st.composite
def damaged(draw, good):
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["set", "insert", "delete", "repeat"]))
        if kind == "set" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "delete":
            del data[at : at + draw(st.integers(1, 60))]
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 60))]
    return bytes(data)


@pytest.mark.parametrize("what", WIRES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_decoder_takes_what_encodes_to_the_same_bytes_and_refuses_the_rest(what, data):
    decode, good = WIRES[what]
    raw = data.draw(st.one_of(st.binary(max_size=200), damaged(good)))
    try:
        decoded = decode(raw)
    except Malformed:
        return
    again = group.scalar_to_bytes(decoded) if isinstance(decoded, int) else decoded.to_bytes()
    assert again == raw


HEADER, _ = abe.encapsulate(MASTER.public, POLICY, CONTEXT)


@settings(max_examples=150, deadline=None)
@given(header=st.one_of(st.binary(max_size=400), damaged(HEADER)))
def test_a_damaged_header_never_opens(header):
    if header == HEADER:
        return
    with pytest.raises((Malformed, Unauthentic)):
        abe.decapsulate(MASTER.public, KEY, POLICY, header, CONTEXT)


def test_nothing_that_is_decoded_holds_an_element_of_gt():
    assert not hasattr(group.GT, "from_bytes")
    for master in (MASTER, fame.MasterKey.generate()):
        sizes = [len(part) for part in msgspec.msgpack.decode(master.public.to_bytes())[1:]]
        assert all(size % 96 == 0 and size < group.GT_BYTES for size in sizes)
