"""What happens around the updates: logging, evaluation, checkpoints, progress."""
