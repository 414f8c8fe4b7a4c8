"""A real browser, and the two pages that it opens consoles in."""
