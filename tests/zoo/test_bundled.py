import json
import subprocess
import sys

import pytest
import torch

from interp import HookedGPT, zoo
from interp.loading import BUNDLED
from interp.tokenization import Tokenizer
from interp.training import FullBatch, TokenFile, evaluate, modular_addition, repeated_tokens
from interp.training.measures import fourier_power, head_scores, repeat_losses
from tests.variants import quick_of

LANGUAGE = ["stdlib-4l", "stdlib-attn-2l"]
HELD_OUT = {"stdlib-4l": 3.6, "stdlib-attn-2l": 3.9}  # nats a token; the vocabulary's logarithm is 8.3


def random_repeats(model: HookedGPT, seed: int = 11) -> torch.Tensor:
    end = model.tokenizer.eos_token_id
    draw = repeated_tokens(model.cfg.d_vocab, 200, (20, 60), bos=end)
    return draw(torch.Generator().manual_seed(seed), 16).tokens


def test_the_models_are_small_in_sixteen_bits_and_have_a_card_each() -> None:
    assert zoo.bundled() == sorted([*LANGUAGE, "modular-addition"])
    assert sum(file.stat().st_size for file in BUNDLED.rglob("*") if file.is_file()) <= 25e6
    for name in zoo.bundled():
        card = zoo.card(name)
        for said in ("parameters", "made by", "`python -m interp.training", "steps", "date, torch", "loss"):
            assert said in card, (name, said)
        model = HookedGPT.from_pretrained(name)
        assert model.dtype == torch.float32
        assert all(torch.equal(p, p.half().float()) for p in model.parameters())
        assert {"step"} <= set(zoo.measures(name)[0])
    with pytest.raises(KeyError, match=r"no bundled model 'gpt5'; there are \['modular-addition'"):
        zoo.card("gpt5")
    with pytest.raises(FileNotFoundError, match=r"none of the models that come along \(modular-addition, "):
        HookedGPT.from_pretrained("no such model")


@pytest.mark.slow
def test_they_open_offline_in_a_moment() -> None:
    code = (
        "import socket, time, json; from interp import HookedGPT, zoo\n"
        "def refuse(*_): raise OSError('no network')\n"
        "socket.socket.connect = refuse\n"
        "times = []\n"
        "for name in zoo.bundled():\n"
        "    start = time.process_time(); HookedGPT.from_pretrained(name); times.append(time.process_time() - start)\n"
        "print(json.dumps(times))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert max(json.loads(done.stdout)) < 1


@pytest.mark.parametrize("name", quick_of(LANGUAGE, "stdlib-attn-2l"))
def test_heads_look_back_and_copy_what_came_again(name: str) -> None:
    model = HookedGPT.from_pretrained(name)
    tokens = random_repeats(model)
    scores, losses = head_scores(model, tokens), repeat_losses(model, tokens)
    assert scores["induction"].max() >= 0.6
    assert scores["previous"].max() >= 0.6
    assert losses["again"] <= losses["first"] - 4


@pytest.mark.parametrize("name", quick_of(LANGUAGE, "stdlib-attn-2l"))
def test_induction_rests_on_the_head_that_looks_one_back(name: str) -> None:
    model = HookedGPT.from_pretrained(name)
    tokens = random_repeats(model)
    scores = head_scores(model, tokens)
    layer, head = divmod(int(scores["previous"].argmax()), model.cfg.n_heads)
    assert layer < divmod(int(scores["induction"].argmax()), model.cfg.n_heads)[0]

    def silence(z: torch.Tensor, hook: object) -> None:
        z[:, :, head] = 0

    with model.hooks([(f"blocks.{layer}.attn.hook_z", silence)]):
        without = head_scores(model, tokens)
    assert without["induction"].max() < 0.7 * scores["induction"].max()


@pytest.mark.slow
@pytest.mark.parametrize("name", LANGUAGE)
def test_held_out_files_are_predicted_as_the_card_says(name: str) -> None:
    model = HookedGPT.from_pretrained(name)
    texts = zoo.standard_library(20_000, split="held_out")
    ids = [token for text in texts for token in [*model.tokenizer.encode(text), model.tokenizer.eos_token_id]]
    data = TokenFile(torch.tensor(ids).numpy(), model.cfg.n_ctx, bos=model.tokenizer.eos_token_id)
    assert evaluate(model, data)["loss"] < HELD_OUT[name]


def test_the_larger_model_completes_code() -> None:
    model = HookedGPT.from_pretrained("stdlib-4l")
    for prompt, follows in (
        ("import os\nimport sys\nimport", " "),
        ("    def __init__(self", ","),
        ("for i in range", "("),
    ):
        assert model.generate(prompt, max_new_tokens=1, temperature=0)[len(prompt) :].startswith(follows), prompt
    written = model.generate(
        "class Reader:\n    def __init__(self, path):\n        self.path =", max_new_tokens=2, temperature=0
    )
    assert written.startswith("class Reader:\n    def __init__(self, path):\n        self.path = path")


def test_modular_addition_is_past_grokking() -> None:
    model = HookedGPT.from_pretrained("modular-addition")
    _, held_out = modular_addition(113, 0.3)
    found = evaluate(model, FullBatch(held_out), n_rows=4096)
    assert found["accuracy"] >= 0.999
    power = fourier_power(model, 113).sort(descending=True).values
    assert power[:8].sum() > 0.9
    steps = [(row["step"], row["held_out_loss"]) for row in zoo.measures("modular-addition") if "held_out_loss" in row]
    learned = next(step for step, loss in steps if loss < 1e-3)
    assert 5_000 <= learned <= 20_000
    assert max(loss for step, loss in steps if step < learned) > 10  # it had learned by heart


def test_the_phase_change_can_be_shown() -> None:
    rows = [row for row in zoo.measures("stdlib-attn-2l") if "head_scores" in row]
    best = [max(max(layer) for layer in row["head_scores"]["induction"]) for row in rows]
    assert 25 <= len(rows) <= 35
    assert best[0] < 0.1
    assert best[-1] > 0.6


@pytest.mark.slow
def test_texts_of_the_standard_library_are_as_many_tokens_as_were_asked_for() -> None:
    tokenizer = Tokenizer.load(BUNDLED.parent / "tokenizer.json")
    assert all(HookedGPT.from_pretrained(name).tokenizer.to_json() == tokenizer.to_json() for name in LANGUAGE)
    for n in (1, 5_000):
        texts = zoo.standard_library(n, seed=3)
        assert sum(len(tokenizer.encode(text)) for text in texts) in range(n, n + 10)
        assert texts == zoo.standard_library(n, seed=3)
    assert zoo.standard_library(5_000) != zoo.standard_library(5_000, seed=1)
    with pytest.raises(ValueError, match=r"tokens=0"):
        zoo.standard_library(0)
