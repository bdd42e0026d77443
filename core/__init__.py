"""Flywise's engine: on-the-fly fine-tuning of interatomic potentials with calibrated errors.

Imports neither Panel nor the app; importing `core` itself loads no torch.
"""

__version__ = "0.1.0"
