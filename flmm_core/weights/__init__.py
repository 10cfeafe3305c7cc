"""Weights on disk and on the Hub: locations, contents, names of tensors, fingerprints."""
