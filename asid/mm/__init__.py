"""Address spaces: page tables, what is mapped in them and why. Pure."""
