"""To `transformers` and back: what we write there computes the same, with the same weights."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp import HookedGPT
from interp.tokenization import Tokenizer
from interp.weights import fold_norms
from tests.families import FAMILIES, saved_model
from tests.variants import some_tokens, variant

TOKENS = torch.randint(0, 31, (2, 17), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_family_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    theirs = saved_model(name, tmp_path / "from")
    ours, kind = HookedGPT.from_pretrained(tmp_path / "from"), FAMILIES[name][0]
    assert ours.to_huggingface(tmp_path / "to", kind) == kind
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "to", attn_implementation="eager")
    assert type(again) is type(theirs)
    found = again.state_dict()
    assert found.keys() == theirs.state_dict().keys()
    for key, weight in theirs.state_dict().items():
        padding = 2 if key.endswith("embed_positions.weight") else 0  # OPT's rows that no token has
        assert torch.equal(found[key][padding:], weight[padding:]), key
    assert torch.equal(again(TOKENS).logits, theirs(TOKENS).logits)
    assert HookedGPT.from_pretrained(tmp_path / "to").fingerprint() == ours.fingerprint()


@torch.no_grad()
def test_a_model_made_here_opens_there_as_the_family_that_has_all_it_has(tmp_path: Path) -> None:
    rows = {"gpt2": "gpt2", "gptj": "gptj", "llama": "llama", "neox": "gpt_neox", "gemma2": "gemma3_text"}
    changes = {"gemma2": {"use_qk_norm": True, "embed_scale": 4.0, "attn_scale": 3.0, "d_model": 16}}
    changes["gemma2"]["attn_scores_soft_cap"] = None
    changes["llama"] = {"eps": 1e-3, "d_model": 16}
    for name, kind in rows.items():
        sizes = {"d_model": 12, "d_head": 4, "n_heads": 3} if name in ("gpt2", "gptj", "neox") else {}
        model = variant(name, **sizes, **changes.get(name, {}))
        assert model.to_huggingface(tmp_path / name) == kind
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        torch.testing.assert_close(theirs(some_tokens()).logits, model(some_tokens()), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_tokenizer_precision_and_shards_go_along(tmp_path: Path) -> None:
    tokenizer = Tokenizer.bytes()
    model = variant("llama", torch.bfloat16, d_vocab=tokenizer.d_vocab, d_model=16)
    model.tokenizer = tokenizer
    model.to_huggingface(tmp_path, max_shard_size=9_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    theirs, words = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.dtype == torch.bfloat16
    assert words("a word").input_ids == tokenizer.encode("a word")
    assert words.eos_token_id == theirs.config.eos_token_id == tokenizer.eos_token_id
    assert HookedGPT.from_pretrained(tmp_path).to_tokens("a word").tolist() == model.to_tokens("a word").tolist()


def test_what_no_family_has_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"d_model=14 be a multiple of n_heads=3"):
        variant("gpt2").to_huggingface(tmp_path)
    with pytest.raises(ValueError, match=r"no family of transformers .* gpt2 lacks \['d_head=5', 'attn_scale=2.23"):
        variant("gpt2", d_model=12).to_huggingface(tmp_path)
    with pytest.raises(ValueError, match=r"no family .*normalization_type='RMSPre'"):
        fold_norms(variant("llama", d_model=16)).to_huggingface(tmp_path)
    with pytest.raises(ValueError, match=r"a mistral model cannot have \['bias_qkv=True'"):
        variant("llama", d_model=16, bias_qkv=True).to_huggingface(tmp_path, "mistral")
    with pytest.raises(ValueError, match=r"model_type='bert'; supported: \['bloom'"):
        variant("llama", d_model=16).to_huggingface(tmp_path, "bert")
    assert not list(tmp_path.iterdir())
