"""Trainers of flmm-tabletop's parts: vision tower, LMM and SAM. Its heads are trained as any LMM's, by flmm_core.training."""
