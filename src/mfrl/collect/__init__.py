"""Data collection in the simulators: OGBench's own files here, Minari datasets by :mod:`mfrl.collect.minari.plan`."""
