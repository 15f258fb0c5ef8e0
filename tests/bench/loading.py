"""Memory and time of loading a checkpoint of about 1 GB, beside safetensors' own load and a clone: `make bench`."""

import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

OURS = """
import re, time
from interp import HookedGPT
status = lambda: int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
before, start = status(), time.perf_counter()
model = HookedGPT.from_pretrained({folder!r})
print(time.perf_counter() - start, (status() - before) * 1024)
"""
THEIRS = """
import time
from pathlib import Path
from safetensors.torch import load_file
import interp
start = time.perf_counter()
kept = [tensor.clone() for file in Path({folder!r}).glob("*.safetensors") for tensor in load_file(file).values()]
print(time.perf_counter() - start, 0)
"""


def measured(code: str) -> tuple[float, int]:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, n_bytes = run.stdout.split()
    return float(seconds), int(n_bytes)


def main() -> None:
    llama = LlamaConfig(
        num_hidden_layers=12, hidden_size=1280, num_attention_heads=10, intermediate_size=3456, vocab_size=8000
    )
    gpt2 = GPT2Config(n_layer=12, n_embd=1280, n_head=10, vocab_size=8000)
    for name, make, cfg in (("Llama", LlamaForCausalLM, llama), ("GPT-2 (turned)", GPT2LMHeadModel, gpt2)):
        with TemporaryDirectory() as folder:
            torch.manual_seed(0)
            make(cfg).save_pretrained(folder)
            size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
            times: dict[str, list[float]] = {"ours": [], "theirs": []}
            memory = 0
            for _ in range(5):
                seconds, memory = measured(OURS.format(folder=folder))
                times["ours"].append(seconds)
                times["theirs"].append(measured(THEIRS.format(folder=folder))[0])
        ours, theirs = median(times["ours"]), median(times["theirs"])
        held, ratio = memory / size, ours / theirs
        verdict = "ok" if held <= 1.15 and ratio <= 1.5 else "MISSED" if name == "Llama" else "apart"
        print(
            f"loading {name}, {size / 1e9:.2f} GB: {ours:.2f} s, load and clone {theirs:.2f} s: {ratio:.2f} (≤ 1.5); "
            f"anonymous memory {held:.2f} of its size (≤ 1.15) {verdict}"
        )


if __name__ == "__main__":
    main()
