"""Recorded bags: reading, grounding, writing."""
