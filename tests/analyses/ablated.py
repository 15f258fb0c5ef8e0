"""The study in a process of its own, in small chunks: one that is killed in the middle, or one of several."""

import os
import signal
import sys
from pathlib import Path

from analyses.ablate import main
from interp.patching import memory, sweep

SMALL = 60  # tokens of a chunk


def killed(study: Path, out: Path, n_chunks: int) -> None:
    """Dies when it has finished so many chunks, in the next one."""
    once, done = sweep.Sweep._measured, []

    def measured(self: sweep.Sweep, logits: sweep.Tensor, prompts: list[int]) -> sweep.Tensor:
        done.append(len(prompts))
        if len(done) > n_chunks:
            os.kill(os.getpid(), signal.SIGKILL)
        return once(self, logits, prompts)

    sweep.Sweep._measured = measured
    main(study=study, out=out)


if __name__ == "__main__":
    memory._LARGEST["cpu"] = SMALL
    if len(sys.argv) == 4:
        killed(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main(study=Path(sys.argv[1]), out=Path(sys.argv[2]))
