"""The scheme and what the paper compares it with, each on the same nodes, cloud, client and cryptography.

    diptych           the product: one record, sealed once, its index on both chains
    diptych_one_chain the same record and envelopes, but one chain alone. A chain keeps one entry per record, so both indexes become one entry there,
                      which leads to the private envelope too; what the private policy lets nobody open stays closed
    traditional       the whole record as one ciphertext and the shared part as a second one, on one chain, access by a list of names
    bpds              every shared sub-message by itself: signed, encrypted, uploaded and indexed on one chain, one request for each

All pass the same tests of what a reader may open (`tests/e2e/test_e2e_baselines.py`). Where the paper leaves a choice, the baseline gets the faster one: what
does not depend on each other runs at once, connections are kept, and data ciphertexts are stored only once where the scheme allows it.
"""

from bench.baselines.bpds import Bpds
from bench.baselines.diptych import Diptych, OneChain
from bench.baselines.scheme import PURPOSE, Held, People, Rights, Scheme
from bench.baselines.traditional import Traditional

SCHEMES: tuple[type[Scheme], ...] = (Traditional, Bpds, Diptych, OneChain)

__all__ = [
    "PURPOSE",
    "SCHEMES",
    "Bpds",
    "Diptych",
    "Held",
    "OneChain",
    "People",
    "Rights",
    "Scheme",
    "Traditional",
]
