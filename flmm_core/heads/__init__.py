"""What is trained on top of the frozen LMM: U-Net, keyword selector, presence score."""
