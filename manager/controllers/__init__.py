"""Controllers of the acting manager: each reconciles what was asked for with what is, and may be killed at any line."""
