"""Tables, figures and self-contained HTML pages about runs and studies.

This file imports none of the modules in `reporting`, so that printing a table does not load matplotlib.
"""
