"""Our own format: round trips, shards, damage, a kill at any moment, safety, memory."""

import json
import multiprocessing
import os
import pickle
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp import HookedGPT
from interp.tokenization import Tokenizer
from tests.families import saved_model
from tests.loading.killed import save_in_turn
from tests.variants import VARIANTS, quick_of, some_tokens, variant

TOKENS = some_tokens()


@pytest.mark.parametrize("size", [2**30, 4000], ids=["one file", "shards"])
@pytest.mark.parametrize("name", quick_of(VARIANTS, "gpt2", "llama", "gptj", "gemma2"))
def test_a_model_comes_back_bit_for_bit(name: str, size: int, tmp_path: Path) -> None:
    model = variant(name)
    model.save_pretrained(tmp_path, max_shard_size=size)
    loaded = HookedGPT.from_pretrained(tmp_path)
    assert loaded.cfg == model.cfg
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert (tmp_path / "model.safetensors.index.json").exists() == (size == 4000)
    assert not list(tmp_path.glob(".*")), "nothing unfinished is left"
    torch.testing.assert_close(loaded(TOKENS), model(TOKENS))


def test_the_tokenizer_comes_along_and_dtype_and_device_can_be_chosen(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["the cat sat on the mat"] * 3, 270, progress=False)
    model = variant("llama", d_vocab=270)
    model.tokenizer = tokenizer
    model.bfloat16().save_pretrained(tmp_path)
    loaded = HookedGPT.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.to_tokens("the cat"), model.to_tokens("the cat"))
    other = HookedGPT.from_pretrained(tmp_path, dtype=torch.float64, device="cpu")
    assert other.dtype == other.cfg.dtype == torch.float64
    assert torch.equal(other.W_E, model.W_E.double())
    assert json.loads((tmp_path / "config.json").read_text())["n_layers"] == 2
    assert Tokenizer.load(tmp_path).encode("the cat") == tokenizer.encode("the cat")


def test_a_fingerprint_names_config_and_weights(tmp_path: Path) -> None:
    model = variant("gpt2")
    name = model.fingerprint()
    model.save_pretrained(tmp_path)
    assert HookedGPT.from_pretrained(tmp_path).fingerprint() == model.fingerprint() == name
    assert variant("gpt2").fingerprint() == name
    assert variant("gpt2", eps=1e-4).fingerprint() != name
    assert variant("gpt2").double().fingerprint() != name
    with torch.no_grad():
        model.blocks[1].attn.W_Q[0, 0, 0] += 1
    changed = model.fingerprint()
    assert changed != name
    model(TOKENS, "loss").backward()
    torch.optim.AdamW(model.parameters()).step()
    assert model.fingerprint() not in (changed, name)


def test_a_save_over_another_leaves_no_trace_of_it(tmp_path: Path) -> None:
    one, two = variant("gpt2"), variant("llama")
    for model, size in ((one, 4000), (two, 4000), (one, 2**30), (two, 4000), (two, 2**30)):
        model.save_pretrained(tmp_path, max_shard_size=size)
        assert HookedGPT.from_pretrained(tmp_path).cfg == model.cfg
        assert (tmp_path / "model.safetensors").exists() == (size == 2**30)
        assert (tmp_path / "model.safetensors.index.json").exists() == (size != 2**30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_model(tmp_path: Path) -> None:
    draw = random.Random(0)
    models = [variant("gpt2", seed=seed) for seed in (0, 1)]
    models[0].save_pretrained(tmp_path)
    forks = multiprocessing.get_context("forkserver")  # a process of its own, without the start-up of a new one
    forks.set_forkserver_preload(["tests.loading.killed"])
    seen, kills = set(), 0
    while kills < 50 or len(seen) < 4:  # each model, in one file and in shards
        kills += 1
        assert kills < 500, f"found {seen} alone"
        begun = forks.Event()
        saver = forks.Process(target=save_in_turn, args=(str(tmp_path), begun))
        saver.start()
        assert begun.wait(60)
        time.sleep(draw.random() * kills / 500)  # ever later: all four are come to on a slow machine, too
        assert saver.is_alive()
        saver.kill()
        saver.join()
        loaded = HookedGPT.from_pretrained(tmp_path)
        assert torch.equal(loaded.W_E, models[loaded.cfg.seed].W_E), "config and weights belong together"
        seen.add((loaded.cfg.seed, (tmp_path / "model.safetensors.index.json").exists()))


def damage(folder: Path, draw: random.Random) -> None:
    """One seeded corruption of a saved folder."""
    file = draw.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    content = bytearray(file.read_bytes())
    kind = draw.randrange(7)
    if kind == 0 and content:
        for _ in range(draw.randrange(1, 4)):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == 1 and content:  # in the header
        content[draw.randrange(min(len(content), 2000))] = draw.randrange(256)
    elif kind == 2:
        content = content[: draw.randrange(len(content) + 1)]
    elif kind == 3:
        content += bytes(draw.randrange(1, 50))
    elif kind == 4 and file.suffix == ".safetensors" and len(tensors := load_file(file)) > 1:  # names swapped
        a, b = draw.sample(sorted(tensors), 2)
        tensors[a], tensors[b] = tensors[b], tensors[a]
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        save_file(tensors, file, metadata)
        return
    elif kind == 5:
        content = bytearray(
            draw.choice([b"", b"{}", b"[]", b"null", b"[" * 50_000, b'{"weight_map": {"a": "../b"}}', b"\xff\xfe"])
        )
    else:
        file.unlink()
        return
    file.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ours", "ours in shards", "outside"])
def test_damage_ends_in_a_clear_error_or_a_model_of_the_same_shapes(kind: str, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    if kind == "outside":
        saved_model("Llama, unscaled", saved, max_shard_size="9KB")
    else:
        model = variant("gpt2", d_vocab=257)
        model.tokenizer = Tokenizer.bytes()
        model.save_pretrained(saved, max_shard_size=4000 if "shards" in kind else 2**30)
    expected = [p.shape for p in HookedGPT.from_pretrained(saved).parameters()]
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    outcomes = {"error": 0, "model": 0}
    for seed in range(334):
        folder = tmp_path / "damaged"
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        damage(folder, random.Random(seed))
        try:
            loaded = HookedGPT.from_pretrained(folder)
        except (ValueError, FileNotFoundError):
            outcomes["error"] += 1
        else:
            assert {p.shape for p in loaded.parameters()} <= set(expected)
            outcomes["model"] += 1
    assert outcomes["error"] > 50
    assert outcomes["model"] > 50


class Evil:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_would_run_code_does_not(tmp_path: Path) -> None:
    saved_model("GPT-2", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    trace = tmp_path / "trace"
    torch.save({"transformer.wte.weight": Evil(trace)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no file of tensors alone"):
        HookedGPT.from_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(ValueError, match="no file of tensors alone"):
        HookedGPT.from_pretrained(tmp_path)
    assert not trace.exists()


def test_a_tensor_larger_than_its_bytes_is_refused(tmp_path: Path) -> None:
    theirs = saved_model("GPT-2", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = theirs.state_dict()
    state["transformer.wte.weight"] = torch.zeros(1).expand(31, 24)
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"wte.weight claims a shape of \[31, 24\] that its bytes do not fill"):
        HookedGPT.from_pretrained(tmp_path)


def test_an_index_cannot_point_outside_of_its_folder(tmp_path: Path) -> None:
    variant("gpt2").save_pretrained(tmp_path / "other")
    folder = tmp_path / "model"
    variant("gpt2").save_pretrained(folder, max_shard_size=4000)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name = next(iter(content["weight_map"]))
    for path in ("../other/model.safetensors", "/etc/passwd", "a/b"):
        content["weight_map"][name] = path
        index.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="no plain file name"):
            HookedGPT.from_pretrained(folder)
    (folder / "linked.safetensors").symlink_to(tmp_path / "other" / "model.safetensors")
    content["weight_map"][name] = "linked.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"outside of the folder"):
        HookedGPT.from_pretrained(folder)
    content["weight_map"][name] = "absent.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match=r"absent.safetensors is missing"):
        HookedGPT.from_pretrained(folder)


def test_the_hubs_links_to_its_blobs_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "123"
    variant("gpt2").save_pretrained(blobs)
    snapshot.mkdir(parents=True)
    (blobs / "model.safetensors").rename(blobs / "0123abcd")  # as the hub names them
    (snapshot / "model.safetensors").symlink_to(blobs / "0123abcd")
    assert HookedGPT.from_pretrained(snapshot).cfg == variant("gpt2").cfg
    theirs = saved_model("GPT-2", tmp_path / "whole")
    (snapshot / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), blobs / "4567cdef")
    (snapshot / "pytorch_model.bin").symlink_to(blobs / "4567cdef")
    (snapshot / "config.json").write_text((tmp_path / "whole" / "config.json").read_text())
    with torch.no_grad():
        torch.testing.assert_close(HookedGPT.from_pretrained(snapshot)(TOKENS), theirs(TOKENS).logits)


def test_saving_follows_no_link_and_knows_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    variant("gpt2").save_pretrained("~/model")
    assert HookedGPT.from_pretrained("~/model").cfg == variant("gpt2").cfg
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "model" / ".model.safetensors.unfinished").symlink_to(outside)
    variant("gpt2").save_pretrained(tmp_path / "model")
    assert outside.read_text() == "mine"
    assert not (tmp_path / "model" / "model.safetensors").is_symlink()


def test_each_weight_keeps_its_precision_and_shared_ones_are_saved(tmp_path: Path) -> None:
    model = variant("gpt2", tie_word_embeddings=False).bfloat16()
    model.ln_final.float()
    model.unembed.weight = model.embed.W_E
    model.save_pretrained(tmp_path)
    loaded = HookedGPT.from_pretrained(tmp_path)
    assert [p.dtype for p in loaded.ln_final.parameters()] == [torch.float32] * 2
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.W_U, model.W_U)
    assert HookedGPT.from_pretrained(tmp_path, dtype=torch.float32).W_E.dtype == torch.float32


def test_an_absurd_config_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    saved_model("Llama, unscaled", tmp_path)
    config = tmp_path / "config.json"
    for field, value in (
        ("num_hidden_layers", 10**9),
        ("vocab_size", 10**12),
        ("hidden_size", 10**7),
        ("head_dim", "x"),
    ):
        content = json.loads(config.read_text())
        whole = dict(content)
        content[field] = value
        config.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"layers; the weights are|of another shape|wrong type|cannot be built"):
            HookedGPT.from_pretrained(tmp_path)
        config.write_text(json.dumps(whole))
    config.write_text("{" + " " * (65 * 2**20))
    with pytest.raises(ValueError, match=r"a JSON file of at most"):
        HookedGPT.from_pretrained(tmp_path)


@pytest.mark.parametrize("stored_as", [torch.float16, torch.bfloat16])
def test_weights_stored_in_fewer_bits_are_widened_when_opened(stored_as: torch.dtype, tmp_path) -> None:
    model = variant("gpt2")
    model.save_pretrained(tmp_path / "half", stored_as=stored_as)
    model.save_pretrained(tmp_path / "whole")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.7 * sizes[1]
    opened = HookedGPT.from_pretrained(tmp_path / "half")
    assert opened.dtype == opened.cfg.dtype == torch.float32
    for name, parameter in opened.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name).to(stored_as).float()), name
    assert all(p.dtype == torch.float32 for p in model.parameters())
