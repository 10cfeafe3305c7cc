"""One question with all that belongs to it: options, callbacks, and the image that it is about."""
