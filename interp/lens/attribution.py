"""Direct logit attribution: what each part of the model adds to a logit by what it writes to the stream.

From the end of the stream a direction is carried back: through the final norm, and where norms stand on the way of what
a part writes, through these, with the scales of that run frozen. All that is left of a part is a dot product, so no
part is ever written out. What a part does by way of later layers is not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from interp.cache import ActivationCache
from interp.lens.run import CachedRun, Direction
from interp.metrics import Answers, answer_ids, check_known
from interp.model import HookedGPT
from interp.model.norms import NoNorm, Norm
from interp.recording import PosSlice
from interp.results import Result, labelled

By = Literal["component", "layer", "head", "neuron", "source_position"]
_BY = ("component", "layer", "head", "neuron", "source_position")


@torch.no_grad()
def direct_logit_attribution(
    model: HookedGPT,
    cache: ActivationCache,
    answer: Answers,
    wrong: Answers | None = None,
    by: By = "component",
    pos: PosSlice = -1,
) -> Result:
    """What each part adds to the logit of `answer`, or to that less the logit of `wrong`: [component prompt].

    Answers are as in `metrics.logit_diff`; a float tensor, [d_model] or [prompt d_model], is a direction in the stream
    at its end, which no norm stands before. Parts are embeddings, biases, attention layers and MLPs; with "layer" what
    both of a layer wrote; with "head" or "neuron" attention or MLPs in their parts; with "source_position" heads by the
    position that they look at ([component key_pos prompt]; what is no head's comes from the position itself).

    The parts sum to `total`, the logit before any cap, and `remainder` is what rounding left; `capped` is the model's
    own logit. All three are coordinates, one number for each prompt, and `attrs` have the remainder at its largest.
    Several positions (a slice, a list, None: all) add an axis `pos`.
    """
    if by not in _BY:
        raise ValueError(f"by={by!r}; allowed: {', '.join(map(repr, _BY))}")
    if by == "neuron" and model.cfg.attn_only:
        raise ValueError("by='neuron': the model is attn_only, it has no neurons")
    run = CachedRun.of(model, cache, pos)
    read = _Read.of(model, answer, wrong)
    if len(read.direction) not in (1, run.n_prompts):
        raise ValueError(f"answers: {len(read.direction)} were given for {run.n_prompts} prompts; give one, or as many")
    blocks = _parts(run, read, by)
    values = torch.cat([block.values for block in blocks])  # [component prompt pos], or [component prompt pos key_pos]
    total, capped = read.of_run(run)
    left = total - values.double().sum((0, *range(3, values.ndim)))
    axes: dict[str, Sequence[Any]] = {"component": [label for block in blocks for label in block.labels]}
    if by == "source_position":
        values = values.movedim(3, 1)
        axes["key_pos"] = range(values.shape[1])
    each = {"prompt": range(values.shape[-2]), "pos": run.columns}
    if run.is_one:
        values, total, capped, left = (x[..., 0] for x in (values, total, capped, left))
        del each["pos"]
    about = {"method": "direct logit attribution", "by": by, "of": read.what, "model": model.fingerprint()}
    about |= {"remainder": left.abs().max().item(), "capped": capped.mean().item()}
    found = labelled(values, {**axes, **each}, "contribution", about)
    along = {"total": total, "capped": capped, "remainder": left}
    known: dict[str, Any] = {name: (list(each), x.cpu().numpy()) for name, x in along.items()}
    known["kind"] = ("component", [block.kind for block in blocks for _ in block.labels])
    known["layer"] = ("component", [block.layer for block in blocks for _ in block.labels])
    return found.assign_coords(known)


@torch.no_grad()
def toward_answer(
    model: HookedGPT, cache: ActivationCache, layer: int, answer: Answers, wrong: Answers | None = None, pos: int = -1
) -> Float[Tensor, "prompt head d_head"]:
    """The direction in each head's z of a layer along which it adds to the logit, or to the difference, directly.

    Its product with a head's z is what `direct_logit_attribution` says that the head adds at this position; its product
    with a weight times a value is the part of that from one key. The cache needs the scales of norms on what layers
    write, the final norm's, and the stream at its end.
    """
    run, read = CachedRun.of(model, cache, pos), _Read.of(model, answer, wrong)
    direction = read.direction.expand(*run.own_columns.shape, -1)
    if read.answers:
        direction = run.back(model.ln_final, "ln_final", direction)
    if model.cfg.norm_position == "post":  # what a layer writes goes through the norms of all later ones
        for later in reversed(range(layer, model.cfg.n_layers)):
            block = model.blocks[later]
            direction = run.back(getattr(block, "ln2_post", NoNorm()), f"blocks.{later}.ln2_post", direction)
            if later > layer:
                direction = run.back(block.ln1_post, f"blocks.{later}.ln1_post", direction)
    attn = model.blocks[layer].attn
    before = run.back(model.blocks[layer].ln1_post, f"blocks.{layer}.ln1_post", direction)
    return einsum(attn.W_O.to(before), before[:, 0], "head d_head d, prompt d -> prompt head d_head")


@dataclass(frozen=True)
class _Read:
    """The direction that is read: of the stream behind the final norm, or of the stream itself."""

    direction: Direction
    constant: Float[Tensor, "#prompt 1"] | None  # what b_U adds
    answers: list[tuple[Int[Tensor, "#prompt _"], int]]  # tokens, and whether they count for or against
    what: str

    @classmethod
    def of(cls, model: HookedGPT, answer: Answers, wrong: Answers | None) -> "_Read":
        if isinstance(answer, Tensor) and answer.is_floating_point():
            if wrong is not None or answer.shape[-1] != model.cfg.d_model or answer.ndim > 2:
                raise ValueError(
                    f"a direction has shape [d_model] or [prompt d_model], d_model={model.cfg.d_model}, and needs no "
                    f"wrong=; given: {list(answer.shape)}"
                )
            return cls(torch.atleast_2d(answer.to(model.device))[:, None], None, [], "a direction in the stream")
        answers = [(answer_ids(model, answer).to(model.device), 1)]
        if wrong is not None:
            answers.append((answer_ids(model, wrong).to(model.device), -1))
        for ids, _ in answers:
            check_known(ids, model.cfg.d_vocab_out)
        exact = torch.promote_types(model.dtype, torch.float32)
        direction = sum(sign * model.W_U.T[ids].to(exact).mean(1) for ids, sign in answers)
        b_U = model.b_U
        constant = None if b_U is None else sum(sign * b_U[ids].to(exact).mean(1) for ids, sign in answers)
        what = "logit" if wrong is None else "logit difference"
        assert isinstance(direction, Tensor)
        return cls(direction[:, None], constant if constant is None else constant[:, None], answers, what)  # type: ignore[union-attr]

    def of_run(self, run: CachedRun) -> tuple[Float[Tensor, "prompt pos"], Float[Tensor, "prompt pos"]]:
        """The model's own number, before a cap and after it."""
        model = run.model
        stream = run.at(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")
        if not self.answers:
            plain = (stream * self.direction).sum(-1).double()
            return plain, plain
        final, cap = model.ln_final.unheard(stream.to(model.dtype)).to(stream), model.cfg.output_logits_soft_cap
        total, capped = (torch.zeros(stream.shape[:2], dtype=torch.float64, device=stream.device) for _ in range(2))
        for ids, sign in self.answers:
            weights = model.W_U.T[ids].to(final)  # [prompt answer d_model]
            logits = einsum(
                final, weights.expand(len(final), -1, -1), "prompt pos d, prompt answer d -> prompt pos answer"
            )
            logits = logits if model.b_U is None else logits + model.b_U[ids].to(final)[:, None]
            total += sign * logits.double().mean(-1)
            capped += sign * (logits if cap is None else cap * torch.tanh(logits / cap)).double().mean(-1)
        return total, capped


@dataclass(frozen=True)
class _Block:
    """Some parts of one kind."""

    labels: list[str]
    kind: str
    layer: int
    values: Tensor  # [part prompt pos], by source position [part prompt pos key_pos]


def _parts(run: CachedRun, read: _Read, by: By) -> list[_Block]:
    """Every part, in order of computation; the direction is carried from the end of the stream to its beginning."""
    model, found, shape = run.model, list[_Block](), run.own_columns.shape
    direction, is_post = read.direction.expand(*shape, -1), model.cfg.norm_position == "post"
    keys = torch.arange(run.n_pos, device=model.device)
    is_own = run.own_columns[..., None] == keys if by == "source_position" else None

    def add(labels: list[str], kind: str, layer: int, values: Tensor) -> None:
        if is_own is not None and values.ndim == 3:
            values = values[..., None] * is_own
        if found and found[-1].labels == labels:
            values = values + found.pop().values
        found.append(_Block(labels, kind, layer, values))

    def add_bias(name: str, layer: int, biases: list[tuple[Tensor | None, Direction]]) -> None:
        numbers = [(toward @ bias.to(toward)).expand(shape) for bias, toward in biases if bias is not None]
        if numbers:
            add([name], "bias", layer, torch.stack(numbers).sum(0)[None])

    def add_written(kind: str, layer: int, norm: Norm, direction: Direction) -> Direction:
        """What attention or the MLP of a layer wrote; the direction as it lies before that in the stream."""
        block, nth = model.blocks[layer], 1 if kind == "attn" else 2
        before = run.back(norm, f"blocks.{layer}.ln{nth}_post", direction)
        own_bias = [] if is_post else [(getattr(norm, "b", None), direction)]
        if is_post:
            add_bias(f"L{layer} ln{nth}_post bias", layer, [(getattr(norm, "b", None), direction)])
        if kind == "attn" and by in ("head", "source_position"):
            add_bias(f"L{layer} attn bias", layer, [(block.attn.b_O, before), *own_bias])
            by_head = einsum(block.attn.W_O.to(before), before, "head d_head d, prompt pos d -> prompt pos head d_head")
            labels = [f"L{layer}H{head}" for head in range(model.cfg.n_heads)]
            add(labels, "head", layer, _of_heads(run, layer, by_head, by))
        elif kind == "mlp" and by == "neuron":
            add_bias(f"L{layer} mlp bias", layer, [(block.mlp.b_out, before), *own_bias])
            values = run.at(f"blocks.{layer}.mlp.hook_post") * (before @ block.mlp.W_out.to(before).T)
            add([f"L{layer}N{n}" for n in range(model.cfg.d_mlp)], "neuron", layer, values.movedim(-1, 0))
        else:
            label = f"L{layer}" if by == "layer" else f"L{layer} {kind}"
            written = run.at(f"blocks.{layer}.hook_{kind}_out")
            add(
                [label],
                "layer" if by == "layer" else kind,
                layer,
                (written * (before if is_post else direction)).sum(-1)[None],
            )
        return before if is_post else direction

    if read.constant is not None:
        add(["b_U"], "bias", model.cfg.n_layers, read.constant.expand(shape)[None])
    if read.answers:
        add_bias("ln_final bias", model.cfg.n_layers, [(getattr(model.ln_final, "b", None), direction)])
        direction = run.back(model.ln_final, "ln_final", direction)
    for layer in reversed(range(model.cfg.n_layers)):
        block = model.blocks[layer]
        if not model.cfg.attn_only:
            direction = add_written("mlp", layer, getattr(block, "ln2_post", NoNorm()), direction)
        direction = add_written("attn", layer, block.ln1_post, direction)
    for name in ("pos_embed", "embed"):
        if name == "embed" or model.cfg.adds_positions:
            add([name], "embed", -1, (run.at(f"hook_{name}") * direction).sum(-1)[None])
    return found[::-1]


def _of_heads(
    run: CachedRun, layer: int, toward: Float[Tensor, "prompt pos head d_head"], by: By
) -> Float[Tensor, "head prompt pos ..."]:
    """What heads write along their directions, in all or from each position that they look at."""
    if by == "head":
        return (run.at(f"blocks.{layer}.attn.hook_z") * toward).sum(-1).movedim(-1, 0)
    values, pattern = run.whole(f"blocks.{layer}.attn.hook_v"), run.at(f"blocks.{layer}.attn.hook_pattern", axis=2)
    values = values.repeat_interleave(run.model.cfg.n_heads // values.shape[2], dim=2)
    along = einsum(values, toward, "prompt key head d_head, prompt pos head d_head -> head prompt pos key")
    return along * pattern.movedim(1, 0)
