"""What strangers send, changed at random."""
