"""The feed-forward layer as a memory: what fires its keys, what its values write, and how both are changed."""

from interp.memories.card import NeuronCard, neuron_card
from interp.memories.facts import knowledge_neurons, memory_attribution, memory_sites, next_tokens, scaled
from interp.memories.insertion import Search, insert, key_covariance
from interp.memories.patterns import removal_test, shared_patterns
from interp.memories.predictions import composition
from interp.memories.triggers import Triggers, triggers
from interp.memories.updates import saturation, sub_updates
from interp.memories.values import agreement, key_statistics, key_tokens, promoted, promoters, suppressed
from interp.memories.writing import Rewrite, edit_memory, report

__all__ = [
    "NeuronCard",
    "Rewrite",
    "Search",
    "Triggers",
    "agreement",
    "composition",
    "edit_memory",
    "insert",
    "key_covariance",
    "key_statistics",
    "key_tokens",
    "knowledge_neurons",
    "memory_attribution",
    "memory_sites",
    "neuron_card",
    "next_tokens",
    "promoted",
    "promoters",
    "removal_test",
    "report",
    "saturation",
    "scaled",
    "shared_patterns",
    "sub_updates",
    "suppressed",
    "triggers",
]
