"""Masks and depth to positions in space: location, support plane, grasp, tracking."""
