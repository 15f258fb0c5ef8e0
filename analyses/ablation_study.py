"""What an ablation study is asked: its options, as the command line, a file and the dashboard say them."""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp import HookedGPT, corpus, interventions, metrics, patching, zoo
from interp.heads.trials import repeats
from interp.interventions import Edit
from interp.metrics import Metric
from interp.passages import rows_of
from interp.patching.ablation import Kind, Mode, Order
from interp.results import as_tokens
from interp.zoo.planted import Planted

PLANTED = "planted/"
DISTRACTORS = 3  # heads with random weights in each layer of a planted model
KINDS = tuple(kind for kind in get_args(Kind) if kind != "knockout")
ANSWERED = ("logit_diff", "logit", "prob", "log_prob", "rank", "accuracy")
AGAINST = ("kl", "js", "top_k_overlap")  # the same prompts with nothing taken away
METRICS = ("loss", "loss_at", *ANSWERED, *AGAINST)


@dataclass(frozen=True)
class Study:
    """What is taken away from which models, on which prompts, and what is measured."""

    models: tuple[str, ...] = ("stdlib-4l",)  # bundled names, planted/NAME, folders, names on the hub
    sites: tuple[str, ...] = ("all",)  # L1H4, L0-2H*, L3N0-63, L2 mlp, heads, blocks.*.hook_mlp_out, resid_pre pos 0-7
    kinds: tuple[str, ...] = ("zero", "mean")  # zero, mean, mean_per_position, resample, uniform, first
    metrics: tuple[str, ...] = ("loss",)  # loss, loss_at, logit_diff, logit, prob, log_prob, rank, accuracy, kl, js, …
    modes: tuple[str, ...] = ("single",)  # beside each part alone: pairs, cumulative
    strongest: int = 8  # pairs and cumulative are of so many parts that change most alone, these first; 0: of all
    order: str = "given"  # of cumulative: given, greedy (the metric lowest next), greedy_highest
    n_steps: int | None = None  # of cumulative; all, if not given
    text: tuple[str, ...] = ()  # prompts, each read whole; in place of rows
    bos: bool | None = None  # whether the model reads its first token before those; as it does otherwise, if not given
    data: str | None = None  # rows of a text, .jsonl or .npy file, or "repeats", random tokens; or standard library
    n_prompts: int = 60  # rows
    n_ctx: int = 40  # tokens of a row
    correct: tuple[str | int, ...] = ()  # the answer, for all prompts or one each: of logit_diff and the like
    wrong: tuple[str | int, ...] = ()  # what logit_diff compares it with
    pos: tuple[int, ...] = (-1,)  # where answers are read, and runs compared
    reference: str = "own"  # whose means and values stand in: the prompts' own, "sample" of the library, or of a file
    edits: str | None = None  # a file of interp.interventions.save: in force in every run, the base run too
    seed: int = 0
    level: float = 0.95  # of the bootstrap intervals over prompts
    resamples: int = 4_000

    def __post_init__(self) -> None:
        faults = [
            _unknown(what, name, allowed)
            for what, given, allowed in (
                ("kind", self.kinds, KINDS), ("metric", self.metrics, METRICS), ("mode", self.modes, get_args(Mode)),
                ("order", (self.order,), get_args(Order)),
            )
            for name in given
            if name not in allowed
        ]  # fmt: skip
        faults += [f"{name}: name at least one" for name in ("models", "sites", "kinds", "metrics", "pos") if
                   not getattr(self, name)]  # fmt: skip
        for name, least in (("n_prompts", 1), ("n_ctx", 2), ("resamples", 1), ("strongest", 0), ("seed", 0)):
            if getattr(self, name) < least:
                faults.append(f"{name}={getattr(self, name)}; it starts from {least}")
        if self.n_steps is not None and self.n_steps < 1:
            faults.append(f"n_steps={self.n_steps}; take away at least 1")
        if not 0 < self.level < 1:
            faults.append(f"level={self.level}; it lies between 0 and 1")
        if self.text and self.data is not None:
            faults.append("text and data: give one of them")
        if "logit_diff" in self.metrics and not (self.correct and self.wrong):
            faults.append("metric 'logit_diff': it compares two answers, give correct and wrong")
        if (asking := [name for name in self.metrics if name in ANSWERED[1:]]) and not self.correct:
            faults.append(f"metric {asking[0]!r}: it is of an answer, give correct")
        if len(self.pos) > 1 and any(name in ANSWERED for name in self.metrics):
            faults.append(f"pos={list(self.pos)}: an answer is read at one position")
        if faults:
            raise ValueError("; ".join(faults))

    @classmethod
    def read(cls, path: Path) -> "Study":
        """The study of a .toml or .json file; raise for what it says and no study has."""
        if path.suffix not in (".toml", ".json"):
            raise ValueError(f"{path}: a study is a .toml or a .json file")
        if not path.is_file():
            raise FileNotFoundError(f"no study {path}")
        try:
            text = path.read_text(encoding="utf-8")
            content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no valid {path.suffix[1:].upper()}: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path} must hold names and values, not a {type(content).__name__}")
        kinds = {each.name: str(each.type) for each in fields(cls)}
        wrong = [_unknown("key", key, tuple(kinds)) for key in content if key not in kinds]
        taken = {key: _taken(kinds[key], value) for key, value in content.items() if key in kinds}
        wrong += [
            f"{key}={content[key]!r:.60}: it is {_in_words(kinds[key])}" for key, x in taken.items() if x is _NONE
        ]
        if wrong:
            raise ValueError(f"{path}: {'; '.join(wrong)}")
        try:
            return cls(**taken)._beside(path.parent)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def _beside(self, folder: Path) -> "Study":
        """With files that are named as they lie from the study's own folder, where they lie there."""
        named = {name: getattr(self, name) for name in ("data", "reference", "edits")}
        found = {name: str(folder / said) for name, said in named.items() if said and (folder / said).is_file()}
        return replace(self, **found)

    def toml(self) -> str:
        """As a file that `read` reads; what is as usual is left out."""
        usual = asdict(Study())
        said = {name: value for name, value in asdict(self).items() if value != usual[name] or name == "models"}
        return "".join(f"{name} = {_toml(value)}\n" for name, value in said.items())

    def opened(self) -> dict[str, "Opened"]:
        """The models, each under a short name of its own."""
        found: dict[str, Opened] = {}
        for name in self.models:
            short = name if name.startswith(PLANTED) else Path(name).name or name
            label, n = short.replace("/", " "), 2
            while label in found:
                label, n = f"{short} {n}".replace("/", " "), n + 1
            found[label] = Opened.named(name)
        return found

    def in_force(self) -> list[Edit]:
        """The edits of the study's file."""
        return [] if self.edits is None else interventions.load(self.edits)


@dataclass(frozen=True, eq=False)
class Opened:
    """A model, and how it was planted if it was."""

    model: HookedGPT
    planted: Planted | None = None

    @classmethod
    def named(cls, name: str) -> "Opened":
        """The model of this name."""
        if not name.startswith(PLANTED):
            return cls(HookedGPT.from_pretrained(name))
        makers = tuple(made for made in zoo.planted.__all__ if made.islower() and made != "successor_lists")
        short = name.removeprefix(PLANTED)
        if short not in makers:
            raise ValueError(_unknown("planted model", short, makers))
        made = getattr(zoo.planted, short)(distractor_heads=DISTRACTORS)
        return cls(made.model, made) if isinstance(made, Planted) else cls(made)

    def prompts(self, study: Study) -> tuple[Int[Tensor, "prompt pos"], Bool[Tensor, "prompt pos"] | None]:
        """What the study has the model read."""
        model = self.model
        if study.text:
            return _texts(model, study)
        if study.data == "repeats":
            return repeats(model, study.n_prompts, study.n_ctx, seed=study.seed).tokens.to(model.device), None
        if study.data is None and self.planted is not None:
            return self.planted.sample(study.n_prompts, study.seed).tokens, None
        if study.data is None and model.tokenizer is None:
            raise ValueError("data: this model has no tokenizer, so no text is read: give a .npy file of tokens")
        return _rows(model, study.data, study).to(model.device), None

    def reference(self, study: Study, tokens: Int[Tensor, "prompt pos"]) -> Int[Tensor, "row other_pos"] | None:
        """The rows whose means and values stand in; None: the prompts' own."""
        if study.reference == "own":
            return None
        n_ctx = tokens.shape[1]
        if study.reference == "sample":
            is_mean = set(study.kinds) <= {"zero", "mean", "uniform", "first"}
            shape = (16, 64) if is_mean else (len(tokens), n_ctx)
            return patching.sample(self.model, *shape).to(self.model.device)
        return _rows(self.model, study.reference, replace(study, n_ctx=n_ctx, n_prompts=len(tokens)))


def metric_of(
    model: HookedGPT, name: str, study: Study, tokens: Int[Tensor, "prompt pos"], mask: Tensor | None
) -> Metric:
    """The metric of this name, on these prompts."""
    if name in ("loss", "loss_at") and (model.cfg.d_vocab != model.cfg.d_vocab_out or _looks_ahead(model)):
        raise ValueError(f"metric {name!r}: this model does not predict the next token of its prompt; try 'kl'")
    if name == "loss":
        return metrics.loss()
    if name == "loss_at":
        return metrics.loss_at(*study.pos)
    if name in AGAINST:
        return getattr(metrics, name)(model, tokens, pos=list(study.pos), attention_mask=mask)
    correct, wrong = (_answers(model, given) for given in (study.correct, study.wrong))
    answers = (correct, wrong) if name == "logit_diff" else (correct,)
    return getattr(metrics, name)(model, *answers, pos=study.pos[0])


_NONE = object()  # TOML has no value for it, and JSON's null is one


def _rows(model: HookedGPT, data: str | None, study: Study) -> Int[Tensor, "prompt pos"]:
    what: Any = corpus.standard_library("held_out", study.seed) if data is None else Path(data)
    if isinstance(what, Path) and not what.is_file():
        raise FileNotFoundError(f"data: no file {data!r}")
    if isinstance(what, Path) and what.suffix == ".npy":
        tokens = corpus.token_file(what)
        what = torch.from_numpy(np.array(tokens)) if tokens.ndim == 2 else what
    return rows_of(model, what, study.n_prompts, study.n_ctx, seed=study.seed)


def _texts(model: HookedGPT, study: Study) -> tuple[Int[Tensor, "prompt pos"], Bool[Tensor, "prompt pos"] | None]:
    """The texts as tokens; for a model without a tokenizer, the token ids that stand there."""
    if model.tokenizer is not None:
        tokens, mask = model.read_input(list(study.text), study.bos, None)
        return as_tokens(model, tokens, mask)
    ids = [text.split() for text in study.text]
    if any(not each.isdigit() for some in ids for each in some) or len({len(some) for some in ids}) != 1 or not ids[0]:
        raise ValueError("text: this model has no tokenizer; prompts are token ids with spaces between, of one length")
    return torch.tensor([[int(each) for each in some] for some in ids], device=model.device), None


def _answers(model: HookedGPT, given: Sequence[str | int]) -> Any:
    if model.tokenizer is not None:
        ids = [model.to_single_token(each) if isinstance(each, str) else each for each in given]
    else:
        texts = [each for each in given if isinstance(each, str) and not each.isdigit()]
        if texts:
            raise ValueError(f"correct, wrong: {texts[0]!r} is no token id, and this model has no tokenizer")
        ids = [int(each) for each in given]
    return ids[0] if len(ids) == 1 else ids


def _looks_ahead(model: HookedGPT) -> bool:
    return model.cfg.attention_dir == "bidirectional"


def _unknown(what: str, given: str, allowed: Sequence[str]) -> str:
    """What was given, what is allowed, and what was probably meant."""
    near = get_close_matches(given, allowed, n=2, cutoff=0.5)
    return f"{what} {given[:40]!r}: " + (f"did you mean {' or '.join(near)}? " if near else "") + (
        f"allowed: {', '.join(allowed)}"
    )  # fmt: skip


def _taken(kind: str, value: Any) -> Any:
    """A value of a file as its field has it; `_NONE` where it is of another kind."""
    is_list = kind.startswith("tuple")
    if value is None:
        return None if kind.endswith("None") else _NONE
    each = value if isinstance(value, list) and is_list else [value]
    known = [kind_of for kind_of in (str, int, bool, float) if kind_of.__name__ in kind]
    if "float" in kind and type(value) is int:
        return float(value)
    if any(type(one) not in known for one in each):
        return _NONE
    return tuple(each) if is_list else value


def _in_words(kind: str) -> str:
    one = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false"}
    some = {"str": "texts", "int": "whole numbers"}
    said = some if kind.startswith("tuple") else one
    return ("a list of " if said is some else "") + " or ".join(words for name, words in said.items() if name in kind)


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
