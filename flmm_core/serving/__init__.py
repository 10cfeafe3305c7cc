"""Serving a pipeline to several clients: requests, replies, and the one thread that works them off. Knows no transport."""
