"""Draw offsets, attention and features as PNG files and as a page."""
