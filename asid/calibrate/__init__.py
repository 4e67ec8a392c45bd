"""What this host's own steps take, beside the cost table: `asid doctor --calibrate`.

Nothing here is asked by a machine that runs: a table of costs is written, and `[costs]` of a configuration takes it.
"""
