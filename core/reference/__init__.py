"""Where labels come from: GFN-xTB, DFT, any ASE calculator, a teacher model, a person.

`Structure -> Label | Failure`, and the submitter that runs it in processes or on Dask.
"""
