"""Patching and ablation: one engine runs every sweep exactly as if each site had been run alone."""

from interp.patching.activation import activation_patching

__all__ = ["activation_patching"]
