"""The page on heads, in its parts."""
