"""Images with their truth: the sample types that training, evaluation and simulation share, and their readers."""
