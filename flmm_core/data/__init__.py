"""Images with ground truth: the sample types of training, evaluation and simulation, and readers of data sets."""
