"""An authority process that signs its answers properly and issues parts under another share than its own.

python tests/e2e/cheating_authority.py CONFIG
"""

import asyncio
import sys
from pathlib import Path

from client.authority import create_app
from client.issuer import Issuer
from configs.files import load_network
from configs.settings import AuthoritySettings
from configs.signer import signer_of
from configs.web import serve
from crypto import fabeo

settings = AuthoritySettings.load(Path(sys.argv[1]))
network, chains = load_network(settings.network)
key = signer_of(settings, "authority.key", None)
issuer = Issuer(key, network, chains, settings.keys, settings.data, None)
issuer.check_ready()._master = fabeo.MasterKey.generate()
asyncio.run(serve(create_app(None, issuer, key.public), settings.http_host, settings.http_port))
