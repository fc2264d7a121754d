"""The report of a run: one self-contained HTML page. Entry point: ``recipes.report.page.write_report``."""
