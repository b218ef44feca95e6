"""The simulated cluster, under the name the tests of this folder import it by."""

from tests.simulation.cluster import CLIENT, WALL0, Cluster, Link, make_genesis, request_tx

__all__ = ["CLIENT", "WALL0", "Cluster", "Link", "make_genesis", "request_tx"]
