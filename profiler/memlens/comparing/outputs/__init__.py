"""What a comparison is shown and written as: a table, a chart, files, TensorBoard."""
