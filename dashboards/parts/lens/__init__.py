"""The page on the lens, in its parts."""
