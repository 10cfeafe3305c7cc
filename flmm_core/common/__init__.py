"""Used everywhere: devices, plain text, memory of tensors and processes."""
