"""Recorded bags: read, ground, write."""
