"""Reports: figures, tables, and one self-contained HTML page."""

from envariant.reporting import figures, page, tables

__all__ = ["figures", "page", "tables"]
