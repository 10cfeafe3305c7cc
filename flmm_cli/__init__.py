"""The command line `flmm`: one module for each command; `shared` is what several use, `suites` what `flmm eval` runs."""
