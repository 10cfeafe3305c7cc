"""The stress test behind `flmm soak`: a camera, clients of every kind, faults, and a log of every delivery."""
