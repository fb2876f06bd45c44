"""Sources: who tells us of every byte. Each one knows all bytes and no meaning."""
