"""The benchmark (`flmm bench`): cost of grounding on top of plain generation, compared with a naive path to the same masks."""
