"""Verification: parity with reference data, and proof that the LMM stays frozen."""
