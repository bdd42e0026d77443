"""Mean, spread, per-atom and per-structure scores of an ensemble: arrays in, arrays out.

Knows nothing of models, and does not calibrate: that is core.calibration.
"""
