"""A doctor signs a FHIR bundle for a patient and writes the package that the patient stores.

python client/examples/doctor.py HOME PATIENT_KEY BUNDLE PACKAGE
"""

import sys
from pathlib import Path

from client.doctor import Doctor
from client.fhir import load_bundle, load_profile
from client.home import Home
from client.session import Session

home, patient, bundle, package = sys.argv[1:]
with Session(Home(Path(home))) as session:
    record, sealed, parts = Doctor(session).sign(
        load_bundle(bundle), bytes.fromhex(patient), load_profile("safe")
    )
Path(package).write_bytes(sealed)
print(record.hex())
