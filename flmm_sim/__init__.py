"""A simulated table-top camera: scenes with their truth, and questions about them with true answers."""
