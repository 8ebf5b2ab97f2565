"""Benchmark of the data path: what a router adds to a request and to a stream, and peers beside it.

See `bench/proxy/__main__.py` for how to run it, and docs/PERFORMANCE.md for what it found.
"""
