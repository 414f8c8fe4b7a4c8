"""A real cluster on one machine: nodes that can lose power, hang or be cut off, for the demo and the tests."""
