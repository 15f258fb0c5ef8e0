"""Questions to a model, one a file: each runs alone (`python -m analyses.NAME`), and says in words what it found."""
