"""One kit for all HTML pages."""
