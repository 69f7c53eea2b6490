"""Loop, optimiser, schedule and checkpoints."""
