"""What happens around the updates: logging, evaluation, checkpoints, progress."""

from mfrl.callbacks.checkpoint import Checkpoint
from mfrl.callbacks.evaluation import Evaluate
from mfrl.callbacks.held_out import EvaluateHeldOut
from mfrl.callbacks.interruption import Interruption
from mfrl.callbacks.monitor import Monitor
from mfrl.callbacks.progress import Progress
from mfrl.callbacks.samples import EvaluateSamples

__all__ = ["Checkpoint", "Evaluate", "EvaluateHeldOut", "EvaluateSamples", "Interruption", "Monitor", "Progress"]
