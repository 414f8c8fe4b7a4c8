"""The agent's gRPC services: thin translations of requests into calls of the host's parts."""
