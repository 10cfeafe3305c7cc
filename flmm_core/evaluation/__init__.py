"""How good grounding is: figures on data sets with known truth, and images of where the frozen LMM looks."""
