"""The gateway: what browsers and terminals reach by HTTPS and WebSocket. Decision 0011."""
