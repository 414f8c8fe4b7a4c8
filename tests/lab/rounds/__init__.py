"""The long run: faults at random, one after the other, on a cluster that runs guests under HA."""
