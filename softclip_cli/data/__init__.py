"""From any image-text source to batches."""
