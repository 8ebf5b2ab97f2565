"""The index: what it costs in memory, how fast it is written and read, and how that grows.

Everything runs for real: events are packed as vLLM packs them and sent over ZMQ to an indexer
process of its own (`kvatlas indexer`), which writes to a private Redis; lookups are the router's
own call. All of it shares the machine.
"""
