"""Access to guests: consoles, programs run inside, files carried in and out; the part above the drivers."""
