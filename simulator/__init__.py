"""An engine that behaves like vLLM, for demo, tests and benchmarks."""
