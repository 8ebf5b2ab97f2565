"""KV-cache events in, the shared block index out."""
