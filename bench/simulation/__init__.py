"""The tables of docs/SIMULATION.md and of docs/SCALING.md, simulated."""
