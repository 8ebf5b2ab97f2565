"""Doubles of what stands outside kvatlas, speaking the real protocols."""
