"""Words of a frozen large multimodal model grounded in images: PyTorch and transformers only, no ROS."""
