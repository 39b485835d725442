"""Reports: figures, tables, and one self-contained HTML page.

Nothing is imported here: who prints a table on a terminal need not wait for what draws pictures.
"""
