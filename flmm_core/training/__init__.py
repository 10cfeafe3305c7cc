"""Training of grounding heads on any frozen LMM, and the loop, losses and traces for it: seeded and resumable."""
