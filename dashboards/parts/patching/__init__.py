"""The parts of the page Patching."""
