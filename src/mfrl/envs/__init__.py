"""Environments: construction, vectorised evaluation, rendering and videos. Simulators are imported lazily."""
