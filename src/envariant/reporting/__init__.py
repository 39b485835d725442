"""Tables, figures and self-contained HTML pages about runs and studies.

This file imports no module of the package, so that printing a table does not load matplotlib.
"""
