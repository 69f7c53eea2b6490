"""softclip: train CLIP-style models on noisy image-text pairs with soft targets, and evaluate them."""

__version__ = "0.1.0"
