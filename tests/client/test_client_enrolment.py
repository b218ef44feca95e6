"""Invitations and enrolments, seen by who listens on the network or alters them."""

import os

import msgspec
import pytest

from client.enrolment import Enrolment, EnrolmentBody, Invitation, decode_enrolment
from crypto.codec import encode
from crypto.errors import DiptychError, Malformed, Unauthentic
from crypto.seal import SealKey
from crypto.sign import SigningKey

AUTHORITY, VICTIM, THIEF = (SigningKey(name.ljust(32, b".")) for name in (b"authority", b"victim", b"thief"))
SEAL = SealKey(b"s" * 32)


@pytest.fixture
def invitation() -> Invitation:
    return Invitation.make("user", ("role:researcher",), 2**40, os.urandom(32), AUTHORITY)


def enrolment(invitation: Invitation, subject: SigningKey) -> Enrolment:
    return Enrolment.make(
        EnrolmentBody(invitation.invite, subject.public, SEAL.public, None), subject, invitation
    )


def check(raw: bytes) -> None:
    """As the authority does first of all."""
    found = decode_enrolment(raw)
    found.verify()
    found.body.invite.verify(AUTHORITY.public)


def test_an_invitation_is_read_back_from_its_line_of_text(invitation: Invitation):
    text = invitation.to_text()
    assert Invitation.from_text(f"  {text}\n") == invitation
    invitation.invite.verify(AUTHORITY.public)
    for damaged in (text[:-5], text + "AAAA", text[:40] + "!" + text[41:], "diptych-invite-", "hello"):
        with pytest.raises(Malformed):
            Invitation.from_text(damaged)


def test_an_enrolment_on_its_way_does_not_hold_the_secret_of_the_invitation(invitation: Invitation):
    sent = enrolment(invitation, VICTIM)
    sent.verify()
    assert invitation.seed not in encode(sent)


def test_who_hears_an_enrolment_cannot_enrol_another_key_with_it(invitation: Invitation):
    heard = enrolment(invitation, VICTIM)
    own = msgspec.structs.replace(heard.body, subject=THIEF.public)
    signature = THIEF.sign("enrolment", encode(own))
    for invited in (
        heard.invited,
        THIEF.sign("invited", encode(own)),
        signature,
        heard.body.invite.signature,
        bytes(64),
    ):
        with pytest.raises(Unauthentic, match="use of the invitation"):
            Enrolment(own, signature, invited).verify()
    with pytest.raises(Unauthentic, match="the enrolment"):
        Enrolment(own, heard.signature, heard.invited).verify()


def test_who_hears_an_enrolment_cannot_have_its_answers_sealed_to_another_key(invitation: Invitation):
    heard = enrolment(invitation, VICTIM)
    own = msgspec.structs.replace(heard.body, seal_key=SealKey(b"t" * 32).public)
    with pytest.raises(Unauthentic):
        Enrolment(own, heard.signature, heard.invited).verify()


def test_an_invitation_whose_key_was_exchanged_is_not_the_authoritys(invitation: Invitation):
    body = msgspec.structs.replace(invitation.invite.body, key=THIEF.public)
    forged = Invitation(msgspec.structs.replace(invitation.invite, body=body), THIEF.seed)
    enrolment(forged, THIEF).verify()
    with pytest.raises(Unauthentic, match="the invitation"):
        forged.invite.verify(AUTHORITY.public)


def test_no_changed_byte_of_an_enrolment_gets_past_the_checks(invitation: Invitation):
    raw = encode(enrolment(invitation, VICTIM))
    for at in range(len(raw)):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises(DiptychError):
            check(changed)
