"""Which structures are worth a label: features, diverse selection, screening of pools.

Knows no posterior and no reference; structures and potentials come in as arguments.
"""
