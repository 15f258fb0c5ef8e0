"""Attention heads: where they look, what they do there, and how sure that is."""

from interp.heads.card import HeadCard, head_card
from interp.heads.classes import TokenClasses
from interp.heads.corpus import corpus_statistics
from interp.heads.effects import direct_effects, disagreement, effect_names
from interp.heads.patterns import Patterns, attention_between, patterns
from interp.heads.repair import self_repair
from interp.heads.roles import ROLES, detect, roles
from interp.heads.scores import SCORES, detect_pattern, scores
from interp.heads.xray import EdgeXrays, edge_writes, edge_xray

__all__ = [
    "ROLES",
    "SCORES",
    "EdgeXrays",
    "HeadCard",
    "Patterns",
    "TokenClasses",
    "attention_between",
    "corpus_statistics",
    "detect",
    "detect_pattern",
    "direct_effects",
    "disagreement",
    "edge_writes",
    "edge_xray",
    "effect_names",
    "head_card",
    "patterns",
    "roles",
    "scores",
    "self_repair",
]
