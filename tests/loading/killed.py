"""Saves two models in turn, over each other, until it is killed."""

from itertools import count
from multiprocessing.synchronize import Event

from tests.variants import variant


def save_in_turn(folder: str, begun: Event) -> None:
    """Each model in one file, then each in shards, and so on."""
    models = [variant("gpt2", seed=seed) for seed in (0, 1)]
    begun.set()
    for i in count():
        models[i % 2].save_pretrained(folder, max_shard_size=[5 * 2**30, 4000][i // 2 % 2])
