"""Cryptography of Diptych: pure functions over bytes, no I/O, no clock, no event loop.

The lowest layer: every other package may import it, it imports none of them.
"""
