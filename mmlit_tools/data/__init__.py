"""Check and draw the data of a config."""
