"""Which words of an answer get a mask."""
