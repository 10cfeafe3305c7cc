"""How good grounding is: figures on data sets with known truth, and pictures of where the frozen LMM looks."""
