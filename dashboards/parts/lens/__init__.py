"""Parts of the page on the lens."""
