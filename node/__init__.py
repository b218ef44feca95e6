"""The node daemon: one member of one chain, around the pure rules of `protocol`."""
