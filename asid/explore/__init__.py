"""Every interleaving of the step functions of `asid.core`, within bounds: proofs and counterexamples."""
