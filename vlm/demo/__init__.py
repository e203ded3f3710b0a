"""What the demo page does with a model, without the page: conversations, heat maps, tables, and what it lets in."""
