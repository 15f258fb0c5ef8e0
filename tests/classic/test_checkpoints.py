"""Checkpoints by their classic names and in the classic layout: what they hold is what is loaded."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from interp import HookedGPT
from interp.classic import HookedTransformer, HookedTransformerConfig
from interp.classic import loading_from_pretrained as loading
from tests.classic.shapes import KINDS, filled, rows

TOYS = ("solu_ln", "attention", "shortformer", "gpt2")


def toy(folder: Path, kind: str, **config: Any) -> HookedTransformer:
    """A model, and a folder that holds it as toy models lie on the hub."""
    model = filled(kind)
    about = {name: value for name, value in KINDS[kind].items() if name != "positional_embedding_type"}
    about = {"attn_only": False, "d_mlp": 40, "act_fn": "gelu"} | about
    about["normalization"] = about.pop("normalization_type", "LN")
    about |= {"shortformer_pos": kind == "shortformer", "tokenizer_name": None, "lr": 1e-3} | config
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(about))
    buffers = {"blocks.0.attn.mask": torch.ones(16, 16).tril().bool(), "blocks.0.attn.IGNORE": torch.tensor(-1e5)}
    torch.save({name: x.clone() for name, x in model.state_dict().items()} | buffers, folder / "model_final.pth")
    return model


@pytest.mark.parametrize("kind", TOYS)
def test_a_toy_model_is_read_from_its_own_layout(kind: str, tmp_path: Path) -> None:
    model = toy(tmp_path, kind)
    plain = HookedTransformer.from_pretrained_no_processing(str(tmp_path))
    assert torch.equal(plain(rows()), model(rows()))
    made = HookedTransformer.from_pretrained(str(tmp_path))
    close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    close(made(rows()).log_softmax(-1), model(rows()).log_softmax(-1))
    if kind == "shortformer":  # of which no norm can be folded
        close(made(rows()), model(rows()))
        assert made.cfg.normalization_type == "LN"
    else:
        assert made.cfg.normalization_type in ("LNPre", None)
        assert made.W_U.mean(1).abs().max() < 1e-6
    short = HookedTransformer.from_pretrained_no_processing(str(tmp_path), first_n_layers=1, n_ctx=12)
    close(short(rows(), stop_at_layer=1), model(rows(), stop_at_layer=1))
    assert (short.cfg.n_ctx, len(short.W_pos)) == (12, 12)
    with pytest.raises(ValueError, match="vectors for 16"):
        HookedTransformer.from_pretrained_no_processing(str(tmp_path), n_ctx=17)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    weights = {name: x.clone() for name, x in toy(tmp_path, "solu_ln").state_dict().items()}
    del weights["blocks.1.mlp.W_out"]
    torch.save(weights | {"blocks.0.mlp.W_more": torch.zeros(2)}, tmp_path / "model_final.pth")
    with pytest.raises(ValueError, match=r"missing \['blocks.1.mlp.W_out'\], not known \['blocks.0.mlp.W_more'\]"):
        HookedTransformer.from_pretrained(str(tmp_path))
    toy(tmp_path, "gpt2", architecture="mingpt")
    with pytest.raises(ValueError, match="architecture='mingpt'"):
        HookedTransformer.from_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="layout of its own"):
        HookedTransformer.from_pretrained("NeelNanda/SoLU_1L_v9_old")
    toy(tmp_path, "gpt2", final_rms=True)
    with pytest.raises(ValueError, match="final_rms=True"):
        HookedTransformer.from_pretrained(str(tmp_path))


def test_a_name_is_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = toy(tmp_path, "solu_ln", tokenizer_name="some/tokenizer"), []
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "model_final.pth").rename(tmp_path / "checkpoints" / "tokens_0400.pth")

    def snapshot(name: str, **how: Any) -> str:
        asked.append((name, how["allow_patterns"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    tokenizer = HookedGPT.from_pretrained("stdlib-attn-2l").tokenizer
    assert tokenizer is not None
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    found = HookedTransformer.from_pretrained_no_processing("solu-1l", checkpoint_value=400)
    assert torch.equal(found(rows()), model(rows()))
    assert found.tokenizer is not None
    assert found.tokenizer.encode("import os") == tokenizer.encode("import os")
    assert asked[0] == ("NeelNanda/SoLU_1L512W_C4_Code", ["config.json", "checkpoints/*400.pth"])
    assert asked[1][0] == "some/tokenizer"
    about = found.cfg.described()
    assert (about["model_name"], about["checkpoint_value"]) == ("SoLU_1L512W_C4_Code", 400)
    cfg = loading.get_pretrained_model_config("solu-1l", n_ctx=8)
    assert (cfg.act_fn, cfg.n_ctx, cfg.d_mlp) == ("solu_ln", 8, 40)
    assert (
        loading.get_num_params_of_pretrained("solu-1l")
        == HookedTransformerConfig(**KINDS["solu_ln"]).__dict__["n_params"]
    )


def test_every_name_means_one_checkpoint() -> None:
    for name, official in {
        "gpt2-small": "gpt2",
        "pythia-70m": "EleutherAI/pythia-70m",
        "EleutherAI/pythia-13b": "EleutherAI/pythia-12b",
        "attn-only-2l": "NeelNanda/Attn_Only_2L512W_C4_Code",
        "SoLU-2L": "NeelNanda/SoLU_2L512W_C4_Code",
        "gelu-4l-new": "NeelNanda/GELU_4L512W_C4_Code",
        "solu-8l": "NeelNanda/SoLU_8L1024W_C4_Code",
        "solu-4l-wiki": "NeelNanda/SoLU_4L512W_Wiki_Finetune",
        "llama-2-7b": "meta-llama/Llama-2-7b-hf",
        "opt-small": "facebook/opt-125m",
    }.items():
        assert loading.get_official_model_name(name) == official
    assert set(loading.make_model_alias_map().values()) == set(loading.OFFICIAL_MODEL_NAMES)
    with pytest.raises(ValueError, match="gpt5 not found"):
        loading.get_official_model_name("gpt5")
    labels, kind = loading.get_checkpoint_labels("pythia-70m")
    assert (labels[:4], labels[-1], len(labels), kind) == ([0, 1, 2, 4], 143_000, 154, "step")
    assert loading.get_checkpoint_labels("stanford-gpt2-small-a")[0][-1] == 400_000
    with pytest.raises(ValueError, match="not checkpointed"):
        loading.get_checkpoint_labels("gpt2")
