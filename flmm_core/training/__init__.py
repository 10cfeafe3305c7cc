"""Trainers of flmm-tabletop: vision tower, LMM, SAM and heads. Each is one command, seeded and resumable."""
