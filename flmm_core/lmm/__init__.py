"""The frozen LMM: tokens, prefix cache, generation, recorded attention and hidden states."""
