"""Serves a pipeline to several clients: requests, replies, and the one worker thread that processes them. No transport."""
