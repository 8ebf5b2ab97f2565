"""Minutes of load with faults in turn: `make soak`."""
