"""Reports: every run in results/ as tables, figures, Markdown and one HTML page."""
