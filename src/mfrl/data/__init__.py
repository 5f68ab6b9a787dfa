"""Transitions, and the LightningDataModules that fill them. Importing the package alone imports no torch."""
