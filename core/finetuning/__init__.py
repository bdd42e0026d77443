"""Fine-tuning strategies, one module each: what moves, and on which data.

Holds energy offsets and receipts too, but no training loop: that is core.training.
"""
