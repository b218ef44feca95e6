"""Configuration of every process: TOML files, then environment, then flags; and the key files they point at.

Beneath `node`, `cloudstub` and `client`, which may all import it; above `crypto` and `protocol`.
"""
