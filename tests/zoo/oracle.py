"""Ablating nodes and cutting edges, literally and slowly: what other ways to do so are held against.

Every node's output is replaced at its own hook point. An edge is cut by taking the sender's output, as it is in this
very run, out of what the one receiver reads, and putting its replacement there.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from interp import HookedGPT

Hooks = list[tuple[str, Callable[..., Any]]]
Outputs = Mapping[str, Tensor]  # node -> what it writes; to replace by zeros, an empty one


def place(node: str) -> tuple[str, tuple[Any, ...]]:
    """The hook point where a node's output can be found, and where in its tensor."""
    if node in ("embed", "pos_embed"):
        return f"hook_{node}", (...,)
    if node.startswith("MLP"):
        return f"blocks.{node[3:]}.hook_mlp_out", (...,)
    layer, kind, index = parts(node)
    if kind == "H":
        return f"blocks.{layer}.attn.hook_result", (..., index, slice(None))
    return f"blocks.{layer}.mlp.hook_post", (..., slice(index, index + 1))


def parts(node: str) -> tuple[int, str, int]:
    found = re.fullmatch(r"L(\d+)([HN])(\d+)", node)
    assert found, node
    return int(found[1]), found[2], int(found[3])


def outputs(model: HookedGPT, tokens: Tensor, nodes: Iterable[str]) -> dict[str, Tensor]:
    nodes = list(nodes)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=[place(node)[0] for node in nodes])
    return {node: cache[hook][index] for node in nodes for hook, index in [place(node)]}


def ablated(nodes: Iterable[str], by: Outputs, where: Tensor | None = None) -> Hooks:
    """Hooks that replace these nodes' outputs: everywhere, or at some positions [batch pos]."""

    def replacing(node: str, index: tuple[Any, ...]) -> Callable[..., Tensor]:
        def replace(x: Tensor, hook: Any) -> Tensor:
            new = by.get(node, torch.zeros(()))
            x[index] = new if where is None else torch.where(where[..., None], new, x[index])
            return x

        return replace

    return [(hook, replacing(node, index)) for node in nodes for hook, index in [place(node)]]


def cut(model: HookedGPT, edges: Iterable[str], by: Outputs) -> Hooks:
    """Hooks that cut these edges."""
    split = [tuple(edge.split("->")) for edge in edges]
    now: dict[str, Tensor] = {}

    def recording(sender: str, index: tuple[Any, ...]) -> Callable[..., None]:
        return lambda x, hook: now.update({sender: x[index]})

    def change(receiver: str) -> Tensor:
        total: Any = 0
        for sender in [sender for sender, r in split if r == receiver]:
            total = (
                total + written(model, sender, by.get(sender, torch.zeros(()))) - written(model, sender, now[sender])
            )
        return total

    senders = [(*place(sender), sender) for sender in dict.fromkeys(sender for sender, _ in split)]
    hooks: Hooks = [(hook, recording(sender, index)) for hook, index, sender in senders]
    for receiver in dict.fromkeys(receiver for _, receiver in split):
        hooks += reading(model, receiver, lambda receiver=receiver: change(receiver))
    return hooks


def written(model: HookedGPT, sender: str, output: Tensor) -> Tensor:
    """What an output puts into the stream: for a neuron, its activation times its value."""
    if not sender.startswith("L") or parts(sender)[1] == "H":
        return output
    layer, _, neuron = parts(sender)
    return output * model.blocks[layer].mlp.W_out[neuron]


def reading(model: HookedGPT, receiver: str, change: Callable[[], Tensor]) -> Hooks:
    """Hooks that change what this receiver alone reads."""
    if receiver == "logits":
        return [(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", lambda x, hook: x + change())]
    if receiver.startswith("MLP"):
        return [(f"blocks.{receiver[3:]}.hook_mlp_in", lambda x, hook: x + change())]
    node, _, slot = receiver.partition(".")
    layer, kind, index = parts(node)
    if kind == "H":

        def add(x: Tensor, hook: Any) -> None:
            x[:, :, index] += change()

        return [(f"blocks.{layer}.hook_{slot}_input", add)]
    block, seen = model.blocks[layer], {}

    def fire(pre: Tensor, hook: Any) -> None:
        x = block.ln2(seen["in"] + change())
        pre[..., index] = x @ block.mlp.W_in[:, index] + (0 if block.mlp.b_in is None else block.mlp.b_in[index])

    return [
        (f"blocks.{layer}.hook_mlp_in", lambda x, hook: seen.update({"in": x})),
        (f"blocks.{layer}.mlp.hook_pre", fire),
    ]


def all_nodes(model: HookedGPT, in_neurons: Iterable[int] = ()) -> list[str]:
    """Every node in order of computation; the MLPs of the layers `in_neurons` neuron by neuron."""
    nodes = ["embed"] + ["pos_embed"] * (model.pos_embed is not None)
    for layer in range(model.cfg.n_layers):
        nodes += [f"L{layer}H{head}" for head in range(model.cfg.n_heads)]
        if not model.cfg.attn_only:
            each = [f"L{layer}N{neuron}" for neuron in range(model.cfg.d_mlp)]
            nodes += each if layer in in_neurons else [f"MLP{layer}"]
    return nodes


def all_edges(nodes: list[str]) -> list[str]:
    """Every edge between these nodes, which stand in order of computation."""

    def stage(node: str) -> tuple[int, int]:
        if node.endswith("embed"):
            return -1, 0
        if node.startswith("MLP"):
            return int(node[3:]), 1
        layer, kind, _ = parts(node)
        return layer, "HN".index(kind)

    edges = [f"{sender}->logits" for sender in nodes]
    for receiver in nodes:
        slots = [".q", ".k", ".v"] if "H" in receiver else [""]
        earlier = [sender for sender in nodes if stage(sender) < stage(receiver)]
        edges += [f"{sender}->{receiver}{slot}" for sender in earlier for slot in slots]
    return edges
