"""How measurements are written down: Markdown tables, JSON files, charts."""
