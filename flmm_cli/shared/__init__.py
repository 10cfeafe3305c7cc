"""What several commands share: options, tables, records of measurements. Loads at once: no PyTorch, no ROS."""
