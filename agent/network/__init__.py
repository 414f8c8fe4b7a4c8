"""Networks of one host: one small interface, one driver a kind of network."""
