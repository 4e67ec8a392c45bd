"""The machine in virtual time: the same step functions with a table of costs, seeded, in one process."""
