"""What happens around the updates: logging, evaluation, checkpoints, progress."""

from mfrl.callbacks.checkpoint import Checkpoint
from mfrl.callbacks.evaluation import Evaluate
from mfrl.callbacks.monitor import Monitor
from mfrl.callbacks.progress import Progress

__all__ = ["Checkpoint", "Evaluate", "Monitor", "Progress"]
