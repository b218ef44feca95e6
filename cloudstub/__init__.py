"""The semi-trusted cloud: an HTTP server over content-addressed ciphertext.

It sees no plaintext and trusts no caller. Imports only `crypto` and `protocol`.
"""
