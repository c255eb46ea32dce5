"""Rendering of reports: text, LaTeX, HTML, plots. Everything that reaches a page or a table is escaped here."""
