"""Molecular dynamics: integrators, triggers, steering forces, paths and saddles.

Takes forces from a callable; knows neither models nor labels.
"""
