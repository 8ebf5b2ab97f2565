"""Requests in, the best endpoint out."""
