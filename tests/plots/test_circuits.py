import re

import pytest

from interp import plots, zoo
from interp.zoo.planted import Planted


@pytest.mark.parametrize("name", ["induction", "indirect_object", "memories", "modular_addition", "both"])
@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_the_graph_has_the_truths_nodes_and_edges_and_no_others(name: str, ablation: str) -> None:
    planted: Planted = getattr(zoo.planted, name)(distractor_heads=2)
    figure = plots.circuit_graph(planted, ablation)
    truth = planted.truth[ablation]
    lines = {trace.name: trace for trace in figure.data if "->" in trace.name}
    assert set(lines) == {re.sub(r"\.[qkv]$", "", edge) for edge in truth.edges}
    for edge in truth.edges:
        ends, _, slot = edge.partition(".")
        assert not slot or slot in lines[ends].text[0].partition(" as ")[2]
    (nodes,) = [trace for trace in figure.data if trace.name == "nodes"]
    assert {text.split("<br>")[-1] for text in nodes.text} == truth.nodes | {"logits"}
    for role, node in planted.roles.items():
        if node in truth.nodes:
            assert f"{role}<br>{node}" in nodes.text
    (idle,) = [trace for trace in figure.data if trace.name == "distractors"]
    assert len(idle.text) == len(planted.distractors)


def test_edges_end_at_their_nodes() -> None:
    figure = plots.circuit_graph(zoo.planted.induction(), theme="dark")
    (nodes,) = [trace for trace in figure.data if trace.name == "nodes"]
    where = {text.split("<br>")[-1]: (x, y) for text, x, y in zip(nodes.text, nodes.x, nodes.y, strict=True)}
    for line in figure.data:
        if "->" in line.name:
            sender, receiver = line.name.split("->")
            assert (line.x[0], line.y[0]) == pytest.approx(where[sender])
            assert (line.x[-1], line.y[-1]) == pytest.approx(where[receiver])


def test_another_ablation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the truths \['resample', 'zero'\]"):
        plots.circuit_graph(zoo.planted.induction(), "mean")
