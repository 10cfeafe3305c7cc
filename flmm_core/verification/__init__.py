"""Parity with reference data, and the proof that the LMM stays frozen."""
