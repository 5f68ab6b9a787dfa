"""A policy outside of training: loaded in two lines, or exported for another runtime."""
