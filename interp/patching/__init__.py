"""Patching and ablation: one engine runs every sweep exactly as if each site had been run alone."""

from interp.patching.ablation import ablation, interaction
from interp.patching.activation import activation_patching
from interp.patching.attribution import attribution_patching
from interp.patching.edges import all_edges, edge_patching
from interp.patching.paths import path_patching
from interp.patching.statistics import summary

__all__ = [
    "ablation",
    "activation_patching",
    "all_edges",
    "attribution_patching",
    "edge_patching",
    "interaction",
    "path_patching",
    "summary",
]
