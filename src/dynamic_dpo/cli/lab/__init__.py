"""The commands on the lab: `simulate` and `replay`."""
