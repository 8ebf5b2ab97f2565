"""Every fault of docs/FAULTS.md, injected for real."""
