"""The triggers of every key are those of a sort of all coefficients: in any batches, after a kill, over processes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from inspect import unwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from interp import GPTConfig, HookedGPT
from interp.interventions import Ablate, Site
from interp.memories import Triggers, triggers
from interp.memories.scan import BEFORE
from interp.passages import passages
from interp.tokenization import Tokenizer
from interp.zoo.planted import memories
from interp.zoo.planted.memories import FACTS, Fact
from tests.memories.scanned import D_VOCAB, N_CTX, corpus, largest, model_of, one_of_several, same, scanned
from tests.peak_memory import peak_bytes
from tests.variants import quick_of, variant

ROOT = Path(__file__).parents[2]
MODELS = ["gpt2", "llama", "relu2", "post", "gptj"]
MODULE = sys.modules[triggers.__module__]


def grid(n: int) -> tuple[Fact, ...]:
    """n² facts: each of n tokens with each of n others."""
    return tuple((a, b, (a + 2 * b) % n) for a in range(n) for b in range(n, 2 * n))


MANY, VERY_MANY = grid(8), grid(32)


def coefficients(model: HookedGPT, sign: int = 1) -> tuple[torch.Tensor, list[Any], list[int], list[int]]:
    """All coefficients [position layer neuron], with tokens up to each position, places and documents."""
    found, contexts, place, document = [], [], [], []
    for number, row in enumerate(passages(model, corpus(), N_CTX, batch_size=1)):
        _, cache = model.run_with_cache(row.tokens, names_filter="*mlp.hook_post")
        found.append(torch.stack([cache["post", layer][0] for layer in range(model.cfg.n_layers)], 1))
        for column in range(row.tokens.shape[1]):
            contexts.append(tuple(row.tokens[0, max(0, column - 7) : column + 1].tolist()))
            place.append(number * N_CTX + column)
            document.append(int(row.document[0]))
    return sign * torch.cat(found), contexts, place, document


@pytest.mark.parametrize("per", quick_of(["document", "position"], "document"))
@pytest.mark.parametrize("name", quick_of(MODELS, "llama"))
@pytest.mark.parametrize("sign", [1, -1])
def test_triggers_are_those_of_a_sort(name: str, per: str, sign: int) -> None:
    model = model_of(name)
    found = scanned(model, per=per, sign=sign)
    values, contexts, place, document = coefficients(model, sign)
    at = {each: i for i, each in enumerate(place)}
    rows = [i for i, row in enumerate(passages(model, corpus(), N_CTX, batch_size=1)) for _ in row.tokens[0]]
    table, n_compared = found.table(), 0
    for layer in range(model.cfg.n_layers):
        for neuron in range(model.cfg.d_mlp):
            wanted = largest(values[:, layer, neuron], place, document, contexts, 6, per == "document")
            ours = found.value[layer, neuron]
            assert (ours > 0).sum() == len(wanted)
            torch.testing.assert_close(
                ours[: len(wanted)], torch.tensor([v for v, _, _ in wanted]), rtol=1e-5, atol=1e-6
            )
            for rank, (value, where, of) in enumerate(wanted):
                if ((values[:, layer, neuron] - value).abs() < 1e-5).sum() == 1:  # else rounding decides
                    n_compared += 1
                    assert int(table.document[layer, neuron, rank]) == of
                    assert int(table.token_id[layer, neuron, rank]) == contexts[at[where]][-1]
                    is_last = at[where] + 1 == len(rows) or rows[at[where] + 1] != rows[at[where]]
                    after = -1 if is_last else contexts[at[where] + 1][-1]
                    assert int(table.next_id[layer, neuron, rank]) == after
    assert n_compared > 50 or sign == -1


@pytest.mark.parametrize("per", ["document", "position"])
@pytest.mark.parametrize("batch_size", quick_of([1, 2, 100], 2))
def test_nothing_depends_on_the_batch_size(batch_size: int, per: str) -> None:
    same(scanned(batch_size=batch_size, per=per), scanned(per=per))


@pytest.mark.parametrize("facts", quick_of([FACTS, MANY, VERY_MANY], FACTS), ids=len)
@pytest.mark.parametrize("norm", [None, "RMS"])
def test_every_planted_key_is_fired_by_its_two_tokens(facts: tuple[Fact, ...], norm: Any) -> None:
    d_vocab = 1 + max(max(fact) for fact in facts)
    planted = memories(facts, d_vocab=d_vocab, norm=norm, distractor_neurons=9)
    examples = planted.sample(max(300, 4 * len(facts)))
    found = triggers(planted.model, examples.tokens, 0, 4, progress=False)
    fired = {}
    for role, node in planted.roles.items():
        if role.startswith("memory"):
            key = found[0, int(node.split("N")[1])]
            pairs = {
                (int(text.split()[-1]), int(token)) for text, token in zip(key.before.values, key.token_id, strict=True)
            }
            assert len(pairs) == 1, role
            fired[int(role.removeprefix("memory"))] = pairs.pop()
    assert fired == {i: (a, b) for i, (a, b, _) in enumerate(facts)}


def test_one_document_and_equal_contexts_count_once() -> None:
    model = variant("gpt2")
    row = torch.randint(0, 13, (9,), generator=torch.Generator().manual_seed(0))
    licence = [torch.cat((row, torch.tensor([i]))) for i in range(10)]
    found = triggers(model, licence, top=5, progress=False)
    every = triggers(model, licence, top=5, per="position", progress=False)
    for layer in range(2):
        for neuron in range(model.cfg.d_mlp):
            documents = found[layer, neuron].document.values.tolist()
            assert len(set(documents)) == len(documents)
            windows = found.window[found.at[layer, neuron][: len(documents)]][:, BEFORE - 7 : BEFORE + 1]
            assert len(windows.unique(dim=0)) == len(windows)
            assert (every.value[layer, neuron] >= found.value[layer, neuron]).all()
    assert (every.value > found.value).any()


def test_a_key_tells_the_text_around_its_triggers() -> None:
    tokenizer = Tokenizer.bytes()
    cfg = GPTConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=10, d_vocab=257, seed=0, default_prepend_bos=True)
    texts = ["the cat sat on the mat", "a dog", "x"]
    found = triggers(HookedGPT(cfg, tokenizer), texts, top=3, progress=False)
    n_tokens = sum(map(len, texts))
    assert repr(found) == f"Triggers({cfg.d_mlp} keys in layer 0: the top 3 of {n_tokens} tokens)"
    for neuron in range(cfg.d_mlp):
        key = found[0, neuron]
        for rank in range(key.sizes["rank"]):
            one = key.isel(rank=rank)
            text, pos = texts[int(one.document)], int(one.pos)
            assert one.token.item() == text[pos]
            start = pos - pos % 9  # a row has 9 of its own behind the beginning-of-text token
            assert one.before.item() == text[start:pos]
            assert one.after.item() == text[pos + 1 : start + 9]
            assert one.next_token.item() == text[pos + 1 : min(pos + 2, start + 9)]


def test_edits_around_the_scan_act() -> None:
    model = model_of()
    with model.edit([Ablate(Site("post", layer=1, neuron=[2]))]):
        found = scanned(model)
    assert not found.value[1, 2].any()
    assert torch.equal(found.value[0], scanned(model).value[0])


def test_chosen_layers_are_those_of_all() -> None:
    every, one = scanned(), scanned(layer=-1)
    assert one.layers == [1]
    assert torch.equal(one.value[0], every.value[1])
    assert one[1, 3].token.equals(every[1, 3].token)


def test_the_sample_and_the_histogram_are_of_all_positions() -> None:
    model = model_of("llama")
    found = scanned(model)
    values, contexts, _, _ = coefficients(model)
    assert found.sample is not None
    assert found.counts is not None
    assert (found.counts.sum((-1, -2)) == len(values)).all()
    assert torch.equal(found.counts[..., 1, :].sum(-1), (values < 0).sum(0))
    tokens = found.window[found.tensors["sampled"]][:, BEFORE]
    assert len(found.sample) == len(tokens.unique()) == 40
    for row, token in zip(found.sample, tokens.tolist(), strict=True):
        nearest = (values - row).abs().amax((1, 2)).argmin()
        torch.testing.assert_close(row.float(), values[nearest], rtol=1e-3, atol=1e-3)
        assert contexts[nearest][-1] == token


@pytest.mark.parametrize("per", ["document", "position"])
def test_a_folder_holds_the_scan(tmp_path: Path, per: str) -> None:
    model = model_of()
    found = scanned(model, folder=tmp_path / "scan", per=per)
    assert sorted(file.name for file in (tmp_path / "scan").iterdir()) == ["triggers.json", "triggers.safetensors"]
    for other in (Triggers.load(tmp_path / "scan", model), scanned(model, folder=tmp_path / "scan", per=per)):
        same(other, found)
        assert other[1, 3].equals(found[1, 3])
    found.save(tmp_path / "copy")
    same(Triggers.load(tmp_path / "copy"), found)


@pytest.mark.slow
@pytest.mark.parametrize("n_batches", [1, 4, 9])
def test_a_scan_killed_in_the_middle_goes_on_where_it_stood(tmp_path: Path, n_batches: int, monkeypatch: Any) -> None:
    command = [sys.executable, "-m", "tests.memories.scanned", str(tmp_path), str(n_batches)]
    assert (
        subprocess.run(command, cwd=ROOT, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
        == -9
    )
    n_read = 0
    settle = MODULE.Largest.settle

    def counted(self: Any, batch: Any) -> Any:
        nonlocal n_read
        n_read += len(batch.tokens)
        return settle(self, batch)

    monkeypatch.setattr(MODULE.Largest, "settle", counted)
    found = scanned(folder=tmp_path, batch_size=2)
    assert n_read == found.about["rows"] - 3 * n_batches
    same(found, scanned())


@pytest.mark.slow
@pytest.mark.parametrize("failing", [-1, 1])
def test_processes_share_the_corpus(tmp_path: Path, failing: int) -> None:
    meeting = str(tmp_path / "meeting")
    spawn(one_of_several, (2, meeting, failing), nprocs=2)
    first, second = (torch.load(f"{meeting}.{rank}", weights_only=True) for rank in range(2))
    for per in ("document", "position"):
        if failing == 1:
            assert first[per] == "the scan failed in another process, which says why"
            assert second[per] == "a fault of one"
            continue
        alone = scanned(per=per)
        for about, tensors in (first[per], second[per]):
            same(Triggers(about, tensors), alone)
        same(Triggers.load(f"{meeting}.{per}"), alone)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(monkeypatch: Any) -> None:
    monkeypatch.setattr("interp.memories.scan._COMPACTED", 500)
    model = variant("gpt2")
    draw = torch.Generator().manual_seed(0)

    def need(n_documents: int) -> int:
        def documents() -> Iterator[torch.Tensor]:
            for _ in range(n_documents):
                yield torch.randint(0, 13, (11,), generator=draw)

        return peak_bytes(lambda: triggers(model, documents(), top=4, reservoir=50, progress=False))

    assert need(600) < 1.2 * need(60)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"layer": 2}, ValueError, "layer=2"),
    ({"layer": []}, ValueError, "no layer was given"),
    ({"top": 0}, ValueError, "top=0"),
    ({"reservoir": -1}, ValueError, "reservoir=-1"),
    ({"n_ctx": 12}, ValueError, "n_ctx=12"),
]


@pytest.mark.parametrize(("choices", "error", "message"), BAD)
def test_bad_choices_are_refused(choices: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        scanned(**choices)


def test_unknown_kinds_are_refused() -> None:
    for choices, message in (({"per": "row"}, "per='row'; allowed"), ({"sign": 0}, "sign=0; allowed")):
        with pytest.raises(ValueError, match=message):
            unwrap(triggers)(variant("gpt2"), corpus(), **choices)


def test_a_model_without_an_mlp_or_a_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="attn_only=True: the model has no MLP"):
        scanned(variant("attn_only"))
    with pytest.raises(ValueError, match="no tokenizer"):
        triggers(variant("gpt2"), ["text"], progress=False)


def test_a_corpus_shorter_than_a_context_is_read() -> None:
    found = triggers(variant("gpt2"), torch.tensor([3]), progress=False)
    assert found.about["tokens"] == 1
    assert (found.value[..., 1:] == 0).all()
    assert found[0, 0].sizes["rank"] in (0, 1)


def test_a_folder_of_another_scan_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    scanned(folder=tmp_path / "done")
    monkeypatch.setattr(MODULE, "_EVERY", 0.0)
    monkeypatch.setattr(MODULE.Triggers, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        scanned(folder=tmp_path / "begun")
    for folder in (tmp_path / "done", tmp_path / "begun"):
        before = {file: file.read_bytes() for file in folder.iterdir()}
        with pytest.raises(ValueError, match=r"another scan: not the same top \(there 6\), per"):
            scanned(folder=folder, top=5, per="position")
        with pytest.raises(ValueError, match="not the same model"):
            scanned(model_of("gptj"), folder=folder)
        with pytest.raises(ValueError, match="another corpus"):
            triggers(model_of(), corpus(29), None, 6, n_ctx=N_CTX, reservoir=40, folder=folder, progress=False)
        other = corpus()
        other[3] = other[3] + 1
        other[3] %= D_VOCAB
        with pytest.raises(ValueError, match="another corpus"):
            triggers(model_of(), other, None, 6, n_ctx=N_CTX, reservoir=40, folder=folder, progress=False)
        assert before == {file: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(ValueError, match="is of another model"):
        Triggers.load(tmp_path / "done", variant("gptj"))
    with pytest.raises(FileNotFoundError, match="has not ended"):
        Triggers.load(tmp_path / "begun")
    model = model_of()
    with model.edit([Ablate(Site("post", layer=1))]), pytest.raises(ValueError, match="hooks"):
        scanned(model, folder=tmp_path / "new")


def test_a_cut_off_or_foreign_file_is_refused(tmp_path: Path) -> None:
    scanned(folder=tmp_path)
    file = tmp_path / "triggers.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match="no complete safetensors file"):
        Triggers.load(tmp_path)
    with pytest.raises(ValueError, match="no complete safetensors file"):
        scanned(folder=tmp_path)
    variant("gpt2").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(file)
    with pytest.raises(ValueError, match="holds no scan for triggers"):
        Triggers.load(tmp_path)


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(KeyError, match="layers are"):
        scanned(layer=1)[0, 3]
