"""Tables, figures and self-contained HTML pages about runs and studies.

The package imports none of its modules, so that printing a table does not load matplotlib.
"""
