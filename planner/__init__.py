"""Simulate a fleet in virtual time: a trace, model engines, routers and their policies.

trace      lines of a trace become records, records become jobs with chains held as runs
makers     records of other traffic
cache      the block cache of one model engine, in runs
engine     continuous batching with chunked prefill, many decode steps at a stretch
index      what routers see of all caches, late by a delay
policies   who gets a job: the product's own scheduling code, peers, the oracle
routers    who hears of whose flights, and when
simulation the loop over time
results    what came of it
"""
