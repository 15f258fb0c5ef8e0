"""How much longer `import interp` takes than `import torch`."""

import subprocess
import sys
from statistics import median


def seconds(module: str) -> float:
    code = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    times: dict[str, list[float]] = {"torch": [], "interp": []}
    for _ in range(11):
        for module, seen in times.items():
            seen.append(seconds(module))
    ours, theirs = median(times["interp"]), median(times["torch"])
    verdict = "ok" if ours - theirs <= 0.3 else "MISSED"
    print(f"import interp {ours:.3f} s, import torch {theirs:.3f} s: {ours - theirs:+.3f} s (≤ 0.3) {verdict}")


if __name__ == "__main__":
    main()
