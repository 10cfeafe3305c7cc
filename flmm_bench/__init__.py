"""Measures what grounding costs on top of talking (`flmm bench`). The naive path to the same masks lives here alone."""
