"""Images: files as people see them, and the arithmetic of frames."""
