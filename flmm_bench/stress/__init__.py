"""The stress program behind `flmm soak`: a camera, clients of every kind, faults, and the books."""
