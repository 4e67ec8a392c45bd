"""The protocol, pure: no IO, no clock, no chance. Engines perform what these step functions decide."""
