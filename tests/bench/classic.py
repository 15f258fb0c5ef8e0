"""`interp.classic` beside TransformerLens at GPT-2 small's size, the same calls in turn: `make bench`."""

import warnings
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec

import torch

from interp import classic
from interp.classic import patching
from tests.bench.timing import in_turn, report

SMALL = {"n_layers": 12, "d_model": 768, "d_head": 64, "n_heads": 12, "d_mlp": 3072, "n_ctx": 256, "d_vocab": 50_257}
NEW = 16


@torch.no_grad()
def main(rounds: int = 5) -> None:
    if find_spec("transformer_lens") is None:
        print("transformer_lens is not installed: no comparison with it")
        return
    warnings.filterwarnings("ignore")
    lens, their_patching = import_module("transformer_lens"), import_module("transformer_lens.patching")
    their_patching.tqdm = lambda rows: rows
    cfg = SMALL | {"act_fn": "gelu_new", "normalization_type": "LNPre", "device": "cpu", "seed": 0}
    theirs = lens.HookedTransformer(lens.HookedTransformerConfig(**cfg)).eval()
    ours = classic.HookedTransformer(classic.HookedTransformerConfig(**cfg)).eval()
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.randint(0, 50_257, (4, 64), generator=torch.Generator().manual_seed(0))
    print(
        f"transformer_lens {version('transformer_lens')}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )

    both = {"ours": ours, "theirs": theirs}
    compare("a pass, 4 × 64 tokens", {name: lambda m=m: m(tokens) for name, m in both.items()}, 0.8, rounds)
    compare("with a whole cache", {name: lambda m=m: m.run_with_cache(tokens) for name, m in both.items()}, 0.9, rounds)
    choices = {"stop_at_eos": False, "do_sample": False, "verbose": False}
    writes = {name: lambda m=m: m.generate(tokens[:1, :32], NEW, **choices) for name, m in both.items()}
    compare(f"{NEW} tokens after 32", writes, 0.5, rounds)
    clean, corrupted = tokens[:1, :16], tokens[:1, :16].clone()
    corrupted[0, 4] = 7
    metric = lambda logits: logits[0, -1, 5] - logits[0, -1, 7]
    sweeps = {}
    for name, model, module in (("ours", ours, patching), ("theirs", theirs, their_patching)):
        cache = model.run_with_cache(clean)[1]
        sweeps[name] = lambda m=model, c=cache, of=module: of.get_act_patch_resid_pre(m, corrupted, c, metric)
    compare("get_act_patch_resid_pre, 16 tokens", sweeps, 1 / 12, 1)


def compare(title: str, rivals: dict, most: float, rounds: int) -> None:
    times = in_turn(rivals, rounds)
    report(title, times["ours"], times["theirs"], round(most, 3))


if __name__ == "__main__":
    main()
