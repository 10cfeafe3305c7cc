"""The suites of `flmm eval`, each an entry of its table."""
