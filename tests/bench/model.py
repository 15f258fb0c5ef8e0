"""The model's speed beside Hugging Face's GPT-2 with sdpa: `make bench`."""

import platform

import torch
import transformers
from transformers import DynamicCache

from interp import HookedGPT, KVCache
from tests.bench.timing import in_turn, report
from tests.huggingface import from_gpt2, hf_gpt2

SMALL = {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_inner": None, "vocab_size": 50257, "n_positions": 1024}
TINY = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_inner": None, "vocab_size": 1000, "n_positions": 64}


def forward_and_backward(model: torch.nn.Module, loss: torch.Tensor) -> None:
    loss.backward()
    model.zero_grad()


def one_token_step(ours: HookedGPT, theirs: torch.nn.Module, n_past: int) -> dict[str, float]:
    device = ours.device
    past = torch.randint(0, ours.cfg.d_vocab, (1, n_past), device=device)
    token = past[:, :1]
    our_cache, their_cache = KVCache(room=ours.cfg.n_ctx), DynamicCache(config=theirs.config)
    with torch.no_grad():
        ours(past, past_kv_cache=our_cache)
        theirs(past, past_key_values=their_cache, use_cache=True)
        steps = {
            "ours": lambda: ours(token, past_kv_cache=our_cache),
            "theirs": lambda: theirs(token, past_key_values=their_cache, use_cache=True),
        }
        return in_turn(steps, rounds=30)


def main() -> None:
    torch.manual_seed(0)
    where = f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {where}; medians: ours, theirs, ratio")
    theirs = hf_gpt2(**SMALL)
    ours = from_gpt2(theirs)
    tokens = torch.randint(0, ours.cfg.d_vocab, (4, 128))
    with torch.no_grad():
        times = in_turn(
            {
                "theirs": lambda: theirs(tokens, use_cache=False).logits,
                "ours": lambda: ours(tokens),
                "resid_post": lambda: ours.run_with_cache(tokens, names_filter="blocks.*.hook_resid_post"),
                "default": lambda: ours.run_with_cache(tokens),
            }
        )
    report("forward, 4 × 128, against Hugging Face", times["ours"], times["theirs"], 1.05)
    report("run_with_cache of every resid_post, against forward", times["resid_post"], times["ours"], 1.05)
    report("run_with_cache by default, against forward", times["default"], times["ours"], 1.5)
    times = in_turn(
        {
            "theirs": lambda: forward_and_backward(theirs, theirs(tokens, labels=tokens, use_cache=False).loss),
            "ours": lambda: forward_and_backward(ours, ours(tokens, "loss")),
        }
    )
    report("forward and backward, 4 × 128, against Hugging Face", times["ours"], times["theirs"], 1.05)
    times = one_token_step(ours, theirs, 512)
    report("one token after 512 in the KV cache, against Hugging Face", times["ours"], times["theirs"], 1.05)

    theirs = hf_gpt2(**TINY)
    ours = from_gpt2(theirs)
    tokens = torch.randint(0, ours.cfg.d_vocab, (1, 16))
    with torch.no_grad():
        times = in_turn(
            {"theirs": lambda: theirs(tokens, use_cache=False).logits, "ours": lambda: ours(tokens)},
            rounds=20,
            inner=50,
        )
    report("2 layers, width 64, 16 tokens: forward, against Hugging Face", times["ours"], times["theirs"], 0.7)


if __name__ == "__main__":
    main()
