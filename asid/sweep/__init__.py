"""Sweeps: every combination of a matrix played in virtual time, by processes here or by a Dask cluster.

Rule 1. A run's row is decided by its configuration, seed and costs and by the sources of asid; by no clock and no host.
Rule 2. A row is kept on disk before it counts. What is kept is not played again; what is not, is.
Rule 3. Rows are in the order of the matrix, whoever played them and when: an undisturbed sweep and one that was killed
        and resumed give the same file, byte for byte.
Rule 4. Every wait has a deadline.
"""
