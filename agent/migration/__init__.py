"""Guests on their way from one host to another: the tunnel between two agents, and who hands over what when."""
