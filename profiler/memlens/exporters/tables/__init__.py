"""A run as tables, for queries: Parquet and CSV."""
