"""Breaks a running network on purpose and judges it by what its clients saw (docs/chaos.md)."""
