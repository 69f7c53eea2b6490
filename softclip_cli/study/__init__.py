"""Studies: a grid of objectives, noise, data and seeds, run cell by cell, and what follows from it with which certainty."""
