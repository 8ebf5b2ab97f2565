"""Route chat requests to the vLLM engine that already holds their prefix."""

__version__ = "0.1.0"
