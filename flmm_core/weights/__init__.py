"""Weights on disk and on the Hub: where they are, what they hold, what they are called."""
