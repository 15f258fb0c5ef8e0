"""The feed-forward layer as a memory: what fires its keys, what its values write, and how both are changed."""

from interp.memories.updates import saturation, sub_updates

__all__ = ["saturation", "sub_updates"]
