"""Against a real vLLM: `make test-engine`."""
