"""How measurements are written: Markdown tables, JSON files, charts."""
