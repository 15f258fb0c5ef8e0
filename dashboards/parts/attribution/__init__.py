"""The page on attribution, in its parts."""
