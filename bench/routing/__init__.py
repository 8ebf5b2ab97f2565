"""Routing compared: a real trace against simulated engines, through kvatlas and its peers.

`make bench-routing JSON=FILE`. Every part is a process of its own, all speak HTTP, and engines
publish events over ZMQ. docs/PEERS.md says what is measured, and how.
"""
