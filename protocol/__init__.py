"""The rules of Diptych, pure: wire types, quorums, the consensus core, the contract.

Nothing here does I/O, reads a clock, draws randomness or knows an event loop; time and random bytes come in as arguments.
Imports only `crypto`.
"""
