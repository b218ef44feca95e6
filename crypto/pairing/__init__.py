"""Pairing libraries over BLS12-381 behind one interface (`backend`), for `crypto.group` alone."""
