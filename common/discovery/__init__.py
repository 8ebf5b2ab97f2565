"""Where endpoints are found: files, DNS, Kubernetes."""
