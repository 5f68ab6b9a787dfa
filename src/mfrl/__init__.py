"""One-step generative policies for offline RL."""

__version__ = "0.1.0"
