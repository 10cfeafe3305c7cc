"""From masks and depth to space: place, support plane, grasp, tracking."""
