"""Loads the parts of a pipeline that a configuration names."""
