"""Patching and ablation: one engine runs every sweep exactly as if each site had been run alone."""

from interp.patching.ablation import ablation, interaction
from interp.patching.activation import activation_patching
from interp.patching.attribution import attribution_patching
from interp.patching.edges import all_edges, edge_patching
from interp.patching.names import parts_named
from interp.patching.paths import path_patching
from interp.patching.removal import removals, sample, with_edits
from interp.patching.statistics import summary
from interp.patching.subspaces import Subspace, fit_subspace, interchange, null_space_check, subspace_controls
from interp.patching.tracing import causal_tracing

__all__ = [
    "Subspace",
    "ablation",
    "activation_patching",
    "all_edges",
    "attribution_patching",
    "causal_tracing",
    "edge_patching",
    "fit_subspace",
    "interaction",
    "interchange",
    "null_space_check",
    "parts_named",
    "path_patching",
    "removals",
    "sample",
    "subspace_controls",
    "summary",
    "with_edits",
]
