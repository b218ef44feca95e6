"""The authority's staff invite a person; the person makes keys and enrols.

python client/examples/authority.py AUTHORITY_CONFIG NETWORK_FILE ROLE NEW_HOME ATTRIBUTE...
"""

import sys
from pathlib import Path

from client.authority import Authority
from client.home import Home
from client.session import Session
from configs.settings import AuthoritySettings
from crypto.ces import ED25519

config, network, role, home, *attributes = sys.argv[1:]
authority = Authority.open(AuthoritySettings.load(Path(config)), passphrase=None)
invitation = authority.invite(
    "doctor" if role == "doctor" else "patient" if role == "patient" else "user", attributes, 1
)
with Session(Home.create(Path(home), Path(network), ED25519 if role == "doctor" else None)) as session:
    session.enrol(invitation)
    print(session.home.sign.public.hex())
