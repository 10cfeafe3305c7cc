"""What every room uses: devices, plain text, memory of tensors."""
