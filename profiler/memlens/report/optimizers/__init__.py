"""What the catalogue of optimizers says, as tables, pages, pictures and JSON."""
