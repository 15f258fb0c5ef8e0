"""The feed-forward layer as a memory: what fires its keys, what its values write, and how both are changed."""

from interp.memories.facts import knowledge_neurons, memory_attribution, memory_sites, scaled
from interp.memories.updates import saturation, sub_updates

__all__ = ["knowledge_neurons", "memory_attribution", "memory_sites", "saturation", "scaled", "sub_updates"]
