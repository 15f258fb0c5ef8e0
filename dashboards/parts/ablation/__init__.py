"""The page on ablation, in parts."""
