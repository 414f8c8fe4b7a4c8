"""What many guests cost on one host while nothing happens, and how fast its agent tells of them and takes them up again."""
