"""A patient stores a package, shares the medical history, and prints who has asked for the record.

python client/examples/patient.py HOME PACKAGE
"""

import sys
from pathlib import Path

from client.fhir import load_profile
from client.home import Home
from client.patient import Patient
from client.session import Session

home, package = sys.argv[1:]
with Session(Home(Path(home))) as session:
    patient = Patient(session)
    signed = patient.receive(Path(package).read_bytes())
    record = signed.header.record
    profile = load_profile(signed.header.profile)
    access = {label: profile.access_of(label) for label in signed.labels}
    policies = {"private": "role:doctor", "shared": "role:doctor or role:researcher"}
    stored = patient.store(record, access, policies, ("treatment", "research"))
    stored = patient.move(record, "m9", "shared")
    print(f"{record.hex()} is stored in version {stored.version}")
    for chain, receipt in patient.log(record):
        print(chain, receipt.sender.hex(), receipt.purpose, receipt.code)
