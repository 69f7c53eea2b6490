"""Zero-shot, linear probe and retrieval on embeddings computed once."""
