"""Heads: trained ones (U-Net, keyword selector, presence score), and attention heads of the LMM that need no training."""
