"""The generated corpus: drawn scenes with captions, and noise whose truth is known (see docs/generated.md)."""
