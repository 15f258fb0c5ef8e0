"""Saves two models in turn, over each other, until it is killed: `python -m tests.loading.killed FOLDER`."""

import sys
from itertools import count

from tests.variants import variant


def main() -> None:
    models = [variant("gpt2", seed=seed) for seed in (0, 1)]
    models[0].save_pretrained(sys.argv[1])
    print("saved", flush=True)
    for i in count():
        models[i % 2].save_pretrained(sys.argv[1], max_shard_size=[5 * 2**30, 4000][i // 2 % 2])


if __name__ == "__main__":
    main()
