"""What the web pages ask of captures: plain values, ready for JSON; no web server is imported here."""
