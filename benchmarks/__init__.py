"""Trunkline beside the libraries it stands on: `python -m benchmarks`, or `make bench`."""
