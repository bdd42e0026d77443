"""How the uncertainty over a potential's parameters is represented: one module per method.

Each has the same names: build, a frozen State, init, update, and sometimes sample.
"""
