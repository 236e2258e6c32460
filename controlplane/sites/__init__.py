"""The site as declared: what applying a file would change, whether it can fit at all, and applying it."""
