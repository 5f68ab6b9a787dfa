"""Data collection in the simulators: OGBench's own files, and Minari datasets."""
