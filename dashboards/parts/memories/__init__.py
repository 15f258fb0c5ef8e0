"""The page on memories, in its parts."""
