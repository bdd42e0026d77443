"""What a potential is good for: tests of accuracy, physics and memory, each with a verdict.

Every test takes a potential and returns a `Finding`; `evaluate` runs them all, also for several
potentials side by side, and says which to deploy and why.
"""
