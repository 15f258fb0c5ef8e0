"""Training runs by name: the model, the data, and the way to train, as published or as bundled."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from interp.config import GPTConfig
from interp.corpus import standard_library, texts_of
from interp.loading.files import replacing
from interp.model import HookedGPT
from interp.tokenization import END_OF_TEXT, Tokenizer
from interp.training.config import TrainingConfig
from interp.training.data import Data, FullBatch, Held, Mixture, Shorter, Stages, Task, TokenFile
from interp.training.loop import Measure
from interp.training.measures import fourier_power, head_scores, positional_or_induction, repeat_losses
from interp.training.tasks import modular_addition, repeated_tokens
from interp.training.texts import split, write_tokens


@dataclass(frozen=True)
class Job:
    """What `train` is given beside a config."""

    model: HookedGPT
    data: Data
    held_out: Held | None = None
    measures: Mapping[str, Measure] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """What a user gives a preset; `folder` keeps the tokens that are made of the files."""

    folder: Path
    files: Sequence[Path] = ()
    tokenizer: Path | None = None
    seed: int = 0


@dataclass(frozen=True)
class Preset:
    """A training run by name."""

    about: str
    training: TrainingConfig
    job: Callable[[Given], Job]
    reads: bool = False  # a text or tokens that the user gives


def shakespeare(given: Given, **sizes: Any) -> Job:
    """Characters of a text, the last tenth of which is held out, in nanoGPT's setting."""
    _ask_for_files(given)
    train, held_out = split(["".join(texts_of(given.files))])
    tokenizer = Tokenizer.characters(train[0] + held_out[0])
    as_published: dict[str, Any] = {
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "act_fn": "gelu",
        "bias_mlp": False,
    }
    model = HookedGPT(
        GPTConfig(d_vocab=tokenizer.d_vocab, seed=given.seed, **_NO_BIAS, **as_published, **sizes), tokenizer
    )
    return Job(model, *_token_files(train, held_out, tokenizer, given, sizes["n_ctx"]))


def stdlib_attn_2l(given: Given) -> Job:
    """Two layers of attention that read Python's standard library, and random tokens that repeat.

    Heads that look back for an earlier occurrence form soonest where few keys compete and few tokens occur. So the
    first 800 steps are of short rows, three quarters of them repeats: of 64 tokens, and then of any number.
    """
    texts = standard_library("train"), standard_library("held_out")
    tokenizer = _tokenizer(given, texts[0], d_vocab=4096)
    sizes: dict[str, Any] = {"n_layers": 2, "d_model": 256, "n_heads": 8, "n_ctx": 256, "attn_only": True}
    kinds: dict[str, Any] = {"positional_embedding_type": "rotary", "normalization_type": "RMS", **_NO_BIAS}
    model = HookedGPT(GPTConfig(d_vocab=tokenizer.d_vocab, seed=given.seed, **sizes, **kinds), tokenizer)
    mixed, text, held_out = _text_and_repeats(given, model, tokenizer, texts)
    n_short, end = model.cfg.n_ctx // 4, tokenizer.eos_token_id
    short_text = TokenFile(text.tokens, n_short, bos=end, seed=given.seed)

    def short(among: tuple[int, int]) -> Shorter:
        repeats = Task(repeated_tokens(tokenizer.d_vocab, n_short, (8, 28), bos=end, among=among), given.seed)
        return Shorter(Mixture([(short_text, 1 / 4), (repeats, 3 / 4)]), 4)

    data = Stages([(350, short((64, 64))), (450, short((64, tokenizer.d_vocab))), (None, mixed)])
    return Job(model, data, held_out, _looking_back(model, tokenizer))


def stdlib_4l(given: Given) -> Job:
    """Four layers with MLPs, grown from the bundled `stdlib-attn-2l`, whose heads it begins with."""
    small = HookedGPT.from_pretrained("stdlib-attn-2l")
    assert small.tokenizer is not None
    model = grown(small, n_layers=4, attn_only=False, d_mlp=1024, bias_mlp=False, seed=given.seed)
    texts = standard_library("train"), standard_library("held_out")
    mixed, _, held_out = _text_and_repeats(given, model, small.tokenizer, texts)
    return Job(model, mixed, held_out, _looking_back(model, small.tokenizer))


@torch.no_grad()
def grown(model: HookedGPT, **changes: Any) -> HookedGPT:
    """A model with more layers, or with MLPs, that computes what this one does: what is new writes nothing as yet."""
    larger, weights = HookedGPT(replace(model.cfg, **changes), model.tokenizer), model.state_dict()
    for name, parameter in larger.named_parameters():
        if name in weights:
            parameter.copy_(weights.pop(name))
        elif name.endswith((".attn.out.weight", ".mlp.down.weight")):
            parameter.zero_()
    if weights:
        raise ValueError(f"a model grows; these weights of it have no place: {list(weights)[:8]}")
    return larger


def _text_and_repeats(
    given: Given, model: HookedGPT, tokenizer: Tokenizer, texts: tuple[list[str], list[str]]
) -> tuple[Mixture, TokenFile, TokenFile]:
    """Rows of text, a quarter of them random tokens that repeat instead; the text alone; what is held out of it."""
    n_ctx, end = model.cfg.n_ctx, tokenizer.eos_token_id
    text, held_out = _token_files(*texts, tokenizer, given, n_ctx, bos=end)
    repeats = Task(repeated_tokens(tokenizer.d_vocab, n_ctx, (10, 100), bos=end, first_copy=False), given.seed)
    return Mixture([(text, 3 / 4), (repeats, 1 / 4)]), text, held_out


def _looking_back(model: HookedGPT, tokenizer: Tokenizer) -> dict[str, Measure]:
    draw = repeated_tokens(tokenizer.d_vocab, model.cfg.n_ctx // 2, (20, 60), bos=tokenizer.eos_token_id)
    look = draw(torch.Generator().manual_seed(1), 8).tokens
    return {
        "head_scores": lambda model: head_scores(model, look),
        "repeats": lambda model: repeat_losses(model, look),
    }


def sums_modulo(given: Given, p: int = 113, share: float = 0.3) -> Job:
    """a + b (mod p) from a share of all pairs, all at once: the network of Nanda et al., 2023."""
    sizes: dict[str, Any] = {
        "n_layers": 1,
        "d_model": 128,
        "n_heads": 4,
        "d_mlp": 512,
        "n_ctx": 3,
        "d_vocab": p + 1,
        "d_vocab_out": p,
    }
    bare: dict[str, Any] = {"bias_qkv": False, "bias_attn_out": False, "bias_mlp": False, "normalization_type": None}
    model = HookedGPT(GPTConfig(act_fn="relu", default_prepend_bos=False, seed=given.seed, **bare, **sizes))
    train, held_out = modular_addition(p, share, given.seed)
    return Job(model, FullBatch(train), FullBatch(held_out), {"fourier_power": lambda model: fourier_power(model, p)})


def induction_toy(given: Given, periods: tuple[int, int]) -> Job:
    """Random tokens that repeat, for two layers of attention. With one fixed period, position alone solves it."""
    n_tokens, n_ctx = 64, 64
    sizes: dict[str, Any] = {
        "n_layers": 2,
        "d_model": 64,
        "n_heads": 4,
        "n_ctx": n_ctx,
        "d_vocab": n_tokens + 1,
        "attn_only": True,
    }
    no_bias: dict[str, Any] = {"bias_qkv": False, "bias_attn_out": False, "normalization_type": "RMS"}
    model = HookedGPT(GPTConfig(seed=given.seed, **no_bias, **sizes))
    draw = lambda lo, hi: repeated_tokens(n_tokens + 1, n_ctx, (lo, hi), bos=n_tokens)
    generator = torch.Generator().manual_seed(given.seed + 1)
    trained, others = draw(*periods)(generator, 64).tokens, draw(8, 28)(generator, 64).tokens
    measures = {
        "repeats": lambda model: repeat_losses(model, trained),
        "head_scores": lambda model: head_scores(model, others),
        "heads": lambda model: positional_or_induction(model, trained, others),
    }
    return Job(model, Task(draw(*periods), given.seed), None, measures)


def gpt2(given: Given) -> Job:
    """GPT-2's smallest shape over texts or a token file; its tokenizer is given, or learned from the texts."""
    _ask_for_files(given)
    n_ctx, d_vocab = 1024, 50_304  # GPT-2's 50,257 tokens, rounded up to what a GPU divides well
    sizes: dict[str, Any] = {"n_layers": 12, "d_model": 768, "n_heads": 12, "n_ctx": n_ctx, "d_vocab": d_vocab}
    as_published: dict[str, Any] = {"tie_word_embeddings": True, "initializer_range": 0.02, "bias_mlp": False}
    cfg = GPTConfig(seed=given.seed, **_NO_BIAS, **as_published, **sizes)
    if [file.suffix for file in given.files] == [".npy"]:
        tokens = TokenFile(given.files[0], n_ctx, seed=given.seed)
        tokenizer = None if given.tokenizer is None else Tokenizer.load(given.tokenizer)
        n_train = max(n_ctx + 1, len(tokens.tokens) - max(n_ctx + 1, len(tokens.tokens) // 1000))
        return Job(
            HookedGPT(cfg, tokenizer),
            TokenFile(tokens.tokens[:n_train], n_ctx, seed=given.seed),
            TokenFile(tokens.tokens[n_train:], n_ctx),
        )
    train, held_out = split(texts_of(given.files), 0.01)
    tokenizer = _tokenizer(given, train, d_vocab=50_257)
    return Job(HookedGPT(cfg, tokenizer), *_token_files(train, held_out, tokenizer, given, n_ctx))


def _ask_for_files(given: Given) -> None:
    if not given.files:
        raise ValueError("this preset reads a text that you give: --data FILE")


def _tokenizer(given: Given, texts: list[str], d_vocab: int) -> Tokenizer:
    """The one given; else that of the folder, if a run began there; else one learned from the texts."""
    file = given.tokenizer or given.folder / "tokenizer.json"
    if given.tokenizer is None and not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as unfinished:
            unfinished.write_text(Tokenizer.train(texts, d_vocab).to_json(), encoding="utf-8")
    return Tokenizer.load(file).with_special(bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)


def _token_files(
    train: list[str], held_out: list[str], tokenizer: Tokenizer, given: Given, n_ctx: int, bos: int | None = None
) -> tuple[TokenFile, TokenFile]:
    files, made_of = [given.folder / "train.npy", given.folder / "held-out.npy"], given.folder / "made-of.txt"
    digest = hashlib.sha256(tokenizer.to_json().encode())
    for text in chain(train, ["held out"], held_out):
        digest.update(hashlib.sha256(text.encode("utf-8", "replace")).digest())
    if made_of.is_file() and made_of.read_text() != digest.hexdigest():
        raise ValueError(f"{given.folder} was made of another text, or with another tokenizer: name a new folder")
    for file, texts in zip(files, (train, held_out), strict=True):
        if not made_of.is_file():  # a run that goes on reads what it read
            write_tokens(texts, tokenizer, file)
    with replacing(made_of) as unfinished:
        unfinished.write_text(digest.hexdigest())
    first, second = (TokenFile(file, n_ctx, bos=bos, seed=given.seed) for file in files)
    return first, second


_NO_BIAS: dict[str, Any] = {"bias_qkv": False, "bias_attn_out": False, "bias_norm": False}
_STDLIB = TrainingConfig(
    steps=5_000, batch_size=16, lr=1e-3, warmup=20, final_lr=0.05, betas=(0.9, 0.98), precision="bfloat16",
    compile=True, eval_every=500, eval_batches=20, checkpoint_every=250, measures=30,
)  # fmt: skip
_SHAKESPEARE = TrainingConfig(
    steps=5_000, batch_size=64, lr=1e-3, warmup=100, betas=(0.9, 0.99), eval_every=250, checkpoint_every=1_000,
    precision="bfloat16", compile=True,
)  # fmt: skip
_SUMS = TrainingConfig(
    steps=20_000, batch_size=3_830, lr=1e-3, schedule="constant", weight_decay=1.0, betas=(0.9, 0.98), clip=None,
    loss_in_float64=True, last_only=True, compile=True, eval_every=100, checkpoint_every=500, measures=60,
)  # fmt: skip
_INDUCTION = TrainingConfig(
    steps=1_500, batch_size=64, lr=1e-3, schedule="constant", weight_decay=0.01, betas=(0.9, 0.98), measure_every=250
)
_GPT2 = TrainingConfig(
    steps=600_000, batch_size=512, accumulate=32, lr=6e-4, warmup=2_000, precision="bfloat16", compile=True,
    log_every=10, eval_every=1_000, checkpoint_every=1_000,
)  # fmt: skip

PRESETS = {
    "shakespeare-char": Preset(
        "characters of a text that you give: 6 layers, 384 wide, dropout 0.2; for a GPU",
        _SHAKESPEARE,
        lambda given: shakespeare(given, n_layers=6, d_model=384, n_heads=6, n_ctx=256, dropout=0.2),
        reads=True,
    ),
    "shakespeare-char-cpu": Preset(
        "characters of a text that you give: 4 layers, 128 wide; minutes on a CPU",
        replace(_SHAKESPEARE, steps=2_000, batch_size=12, lr=2e-3, precision="float32", compile=False),
        lambda given: shakespeare(given, n_layers=4, d_model=128, n_heads=4, n_ctx=64),
        reads=True,
    ),
    "stdlib-4l": Preset(
        "4 layers, 256 wide, on Python's standard library, grown from stdlib-attn-2l (bundled)",
        replace(_STDLIB, steps=1_700, warmup=100),
        stdlib_4l,
    ),
    "stdlib-attn-2l": Preset(
        "2 layers of attention alone, on Python's standard library and random repeats (bundled)",
        _STDLIB,
        stdlib_attn_2l,
    ),
    "modular-addition": Preset(
        "a + b (mod 113) by one layer, from 30 % of the pairs: it learns them by heart, then groks (bundled)",
        _SUMS,
        sums_modulo,
    ),
    "induction-toy": Preset(
        "random tokens that repeat with a random period: two layers of attention grow induction heads",
        _INDUCTION,
        lambda given: induction_toy(given, (8, 28)),
    ),
    "induction-toy-fixed": Preset(
        "the same with one fixed period, which is solved by position alone: a control for head detectors",
        _INDUCTION,
        lambda given: induction_toy(given, (24, 24)),
    ),
    "gpt2-124m": Preset(
        "GPT-2's smallest shape, over texts or a token file that you give; for GPUs", _GPT2, gpt2, reads=True
    ),
}
