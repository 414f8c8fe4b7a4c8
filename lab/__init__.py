"""A real cluster on one machine: nodes that can lose power, hang, or be cut from the network, for the demo and the tests."""
