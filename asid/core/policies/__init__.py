"""One module a policy: where an exit is handled, whom its leave kicks, what is flushed before an entry."""
