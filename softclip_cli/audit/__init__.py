"""Which pairs of a corpus are probably mismatched, and which pairs that it does not have would probably match."""
