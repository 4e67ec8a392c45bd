"""The live engine: real processes, real sockets, wall clock. It performs what `asid.core` decides."""
