"""What a gateway with a picker costs, beside the proxy: `make bench-gateway`."""
