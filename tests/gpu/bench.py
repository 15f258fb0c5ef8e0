"""Speed on a CUDA device: `python -m tests.gpu.bench`, or parts of it: `python -m tests.gpu.bench sweeps lens`."""

import sys
from collections.abc import Callable

import torch
import transformers
from torch import Tensor, nn

from interp import GPTConfig, HookedGPT
from interp.training import TrainingConfig
from tests.bench import generation, heads, lens, memories, patching, training
from tests.bench.model import SMALL, TINY, forward_and_backward, one_token_step
from tests.bench.plain_gpt import PlainGPT
from tests.bench.timing import in_turn, report
from tests.huggingface import from_gpt2, hf_gpt2


def compare(ours: HookedGPT, theirs: nn.Module, tokens: Tensor) -> None:
    size = f"{str(ours.dtype).removeprefix('torch.')} {' × '.join(map(str, tokens.shape))}"
    rivals = {
        "theirs": lambda: theirs(tokens, use_cache=False).logits,
        "ours": lambda: ours(tokens),
        "resid": lambda: ours.run_with_cache(tokens, names_filter="*hook_resid_post"),
        "default": lambda: ours.run_with_cache(tokens),
    }
    with torch.no_grad():
        times = in_turn(rivals, rounds=15)
    report(f"forward, {size}, against Hugging Face", times["ours"], times["theirs"], 1.05)
    report(f"run_with_cache of every resid_post, {size}, against forward", times["resid"], times["ours"], 1.05)
    report(f"run_with_cache by default, {size}, against forward", times["default"], times["ours"], 1.5)
    learning = {
        "theirs": lambda: forward_and_backward(theirs, theirs(tokens, labels=tokens, use_cache=False).loss),
        "ours": lambda: forward_and_backward(ours, ours(tokens, "loss")),
    }
    times = in_turn(learning, rounds=10)
    report(f"forward and backward, {size}, against Hugging Face", times["ours"], times["theirs"], 1.05)


def compare_compiled(ours: HookedGPT, theirs: nn.Module, tokens: Tensor) -> None:
    ours.compile()
    compiled = torch.compile(theirs)
    rivals = {"theirs": lambda: compiled(tokens, use_cache=False).logits, "ours": lambda: ours(tokens)}
    with torch.no_grad():
        times = in_turn(rivals, rounds=15)
    report(f"compiled forward, {ours.dtype}, against Hugging Face", times["ours"], times["theirs"], 1.05)


def compare_training() -> None:
    """GPT-2's smallest shape, bfloat16, compiled: tokens a second, and the share of 989 TFLOP/s, an H100's or H200's
    peak in bfloat16, that the model's own operations make (6 a weight and token, and attention's products)."""
    n_rows, steps, n_ctx = 32, 100, 1024
    shape = GPTConfig(
        n_layers=12,
        d_model=768,
        n_heads=12,
        n_ctx=n_ctx,
        d_vocab=50_304,
        tie_word_embeddings=True,
        seed=0,
        **training.NO_BIAS,
    )
    cfg = TrainingConfig(steps=steps, batch_size=n_rows, precision="bfloat16", compile=True)
    model = HookedGPT(shape).cuda()
    rival = PlainGPT(shape).cuda()
    rival.forward = torch.compile(rival.forward)
    found, rival_found = training.in_turns(model, rival, cfg)
    n_weights = sum(p.numel() for p in model.parameters()) - model.W_pos.numel()
    per_token = 6 * n_weights + 12 * shape.n_layers * shape.d_model * n_ctx
    rate = n_rows * n_ctx / found
    print(f"{rate:,.0f} tokens a second, {rate * per_token / 989e12:.1%} of the peak; bfloat16, compiled, 32 × 1024")
    report("training step of GPT-2 small, against plain PyTorch, compiled alike", found, rival_found, 1 / 0.98)


def compare_steps() -> None:
    for title, (sizes, n_rows, steps) in training.SHAPES.items():
        training.compare(title, sizes, n_rows, steps, device="cuda")


def compare_models() -> None:
    """Beside Hugging Face's GPT-2 with sdpa."""
    for dtype in (torch.float32, torch.bfloat16):
        theirs = hf_gpt2(**SMALL).to("cuda", dtype)
        ours = from_gpt2(theirs).cuda()
        for shape in ((4, 128), (16, 1024)):
            compare(ours, theirs, torch.randint(0, ours.cfg.d_vocab, shape, device="cuda"))
        times = one_token_step(ours, theirs, 512)
        report(f"one token after 512, {dtype}, against Hugging Face", times["ours"], times["theirs"], 1.05)
    theirs = hf_gpt2(**TINY).cuda()
    ours = from_gpt2(theirs).cuda()
    tokens = torch.randint(0, ours.cfg.d_vocab, (1, 16), device="cuda")
    with torch.no_grad():
        rivals = {"theirs": lambda: theirs(tokens, use_cache=False).logits, "ours": lambda: ours(tokens)}
        times = in_turn(rivals, rounds=20, inner=20)
    report("2 layers, width 64, 16 tokens: forward, against Hugging Face", times["ours"], times["theirs"], 0.7)


def compare_compiled_models() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        theirs = hf_gpt2(**SMALL).to("cuda", dtype)
        ours = from_gpt2(theirs).cuda()
        compare_compiled(ours, theirs, torch.randint(0, ours.cfg.d_vocab, (4, 128), device="cuda"))


PARTS: dict[str, Callable[[], None]] = {
    "model": compare_models,
    "compiled": compare_compiled_models,
    "generation": lambda: generation.main("cuda", torch.bfloat16, rounds=3),
    "steps": compare_steps,
    "training": compare_training,
    "sweeps": lambda: patching.main("cuda", torch.bfloat16),
    "memories": lambda: memories.main("cuda", n_batches=200),
    "heads": lambda: heads.main("cuda"),
    "lens": lambda: lens.main("cuda"),
}


def main() -> None:
    torch.manual_seed(0)
    where = torch.cuda.get_device_name()
    print(f"{where}, torch {torch.__version__}, transformers {transformers.__version__}; medians: ours, theirs, ratio")
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()


if __name__ == "__main__":
    main()
