"""Writing of measurements: Markdown tables, JSON files, charts."""
