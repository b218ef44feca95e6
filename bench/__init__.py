"""Measurements, each with a peer or baseline beside ours in the same run. `python -m bench.consensus --help` and so on."""
