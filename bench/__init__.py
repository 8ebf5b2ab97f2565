"""Benchmarks: they print tables."""
