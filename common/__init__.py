"""What several sides need; imports nothing of ours."""
