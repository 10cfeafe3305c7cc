"""SAM as a refiner: coarse mask, box and words to a sharp mask."""
