"""Words of a frozen large multimodal model grounded in pictures: PyTorch and transformers only, no ROS."""
