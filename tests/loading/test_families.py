"""Every family that we load against `transformers`: logits, streams, patterns, gradients, padding, long inputs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import HookedGPT, KVCache
from interp.loading.families import bloom
from tests.families import FAMILIES, random_model, saved_model
from tests.variants import quick_of

ROOT = Path(__file__).parent.parent.parent
TOKENS = torch.randint(0, 31, (3, 23), generator=torch.Generator().manual_seed(5))  # beyond windows of 5 or 6
MASK = torch.ones(3, 23, dtype=torch.long)
MASK[0, :5] = 0
MASK[2, :2] = 0


def relative(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


@pytest.mark.parametrize("is_padded", quick_of([False, True], True), ids=["whole", "left-padded"])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_streams_and_patterns_equal(name: str, is_padded: bool, tmp_path: Path) -> None:
    theirs = saved_model(name, tmp_path)
    ours = HookedGPT.from_pretrained(tmp_path)
    mask = MASK if is_padded else torch.ones_like(MASK)
    real = mask.bool()
    with torch.no_grad():
        reference = theirs(
            TOKENS,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            output_hidden_states=True,
            output_attentions=True,
        )
        logits, cache = ours.run_with_cache(TOKENS, attention_mask=mask)
        unobserved = ours(TOKENS, attention_mask=mask)
    assert relative(logits[real], reference.logits[real]) <= 1e-5
    assert relative(unobserved[real], reference.logits[real]) <= 1e-5
    for layer in range(3):
        assert relative(cache["resid_pre", layer][real], reference.hidden_states[layer][real]) <= 1e-5
        rows = cache["pattern", layer].transpose(1, 2)[real]
        assert relative(rows, reference.attentions[layer].transpose(1, 2)[real]) <= 1e-5
    assert relative(cache["unembed.hook_in"][real], reference.hidden_states[-1][real]) <= 1e-5


@pytest.mark.parametrize("name", quick_of(FAMILIES, "GPT-2", "Llama 2 and 3.x", "Gemma 2"))
def test_bfloat16_is_as_close_to_float32_as_theirs(name: str, tmp_path: Path) -> None:
    theirs = saved_model(name, tmp_path)
    with torch.no_grad():
        exact = theirs(TOKENS).logits
        their_error = relative(theirs.bfloat16()(TOKENS).logits, exact)
        ours = HookedGPT.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert ours.dtype == torch.bfloat16
        assert relative(ours(TOKENS), exact) <= 2 * their_error
        assert relative(ours.run_with_cache(TOKENS)[0], exact) <= 2 * their_error


@pytest.mark.parametrize(
    "name",
    [
        "GPT-2",
        "GPT-NeoX (Pythia)",
        "Llama 2 and 3.x",
        "Gemma 3",
        "OLMo 2",
        "Qwen3",
        "BLOOM",
        "MPT",
        "StableLM, parallel",
    ],
)
def test_gradients_equal(name: str, tmp_path: Path) -> None:
    theirs = saved_model(name, tmp_path)
    ours = HookedGPT.from_pretrained(tmp_path)
    ours(TOKENS, "loss").backward()
    theirs(TOKENS, labels=TOKENS).loss.backward()
    gradients = {key: p.grad for key, p in theirs.named_parameters()}
    whole = sum(g.norm() ** 2 for g in gradients.values()) ** 0.5
    with torch.no_grad():  # what the loader does to weights is linear: so it serves gradients too
        for p in theirs.parameters():
            p.copy_(p.grad)
    theirs.save_pretrained(tmp_path / "gradients")
    expected = HookedGPT.from_pretrained(tmp_path / "gradients")
    for (key, mine), other in zip(ours.named_parameters(), expected.parameters(), strict=True):
        assert (mine.grad - other).norm() <= 1e-4 * other.norm() + 1e-5 * whole, key


ONE_OF_EACH = list({kind: name for name, (kind, _) in reversed(FAMILIES.items())}.values())


VARIED = ["Phi 3, longrope", "StableLM, parallel", "Falcon, 40B", "Llama, YaRN"]


@pytest.mark.parametrize("name", quick_of([*ONE_OF_EACH, *VARIED], "MPT", "Gemma 3"))
def test_they_go_on_alike(name: str, tmp_path: Path) -> None:
    theirs = saved_model(name, tmp_path)
    prompts, mask = TOKENS[:, :15], MASK[:, :15]
    written = theirs.generate(prompts, attention_mask=mask, max_new_tokens=9, do_sample=False, pad_token_id=0)
    ours = HookedGPT.from_pretrained(tmp_path)
    assert torch.equal(ours.generate(prompts, 9, temperature=0, attention_mask=mask), written)


@pytest.mark.parametrize("name", ["Phi 3, longrope", "Llama, dynamic NTK"])
def test_kept_keys_turn_as_those_of_the_longer_input(name: str, tmp_path: Path) -> None:
    saved_model(name, tmp_path)
    model, past = HookedGPT.from_pretrained(tmp_path), KVCache()
    whole = model.run_with_cache(TOKENS, attention_mask=MASK, names_filter="blocks.0.attn.hook_rot_k")[1]
    with torch.no_grad():
        for part in (slice(0, 9), slice(9, 11), slice(11, 23)):  # the original range ends after 12
            logits = model(TOKENS[:, part], attention_mask=MASK[:, part], past_kv_cache=past)
    assert logits.isfinite().all()
    keys = past.of(0)[0].transpose(1, 2)
    assert relative(keys[MASK.bool()], whole["rot_k", 0][MASK.bool()]) <= 1e-6


@pytest.mark.parametrize("how", [{"safe_serialization": True, "max_shard_size": "9KB"}], ids=["shards"])
def test_shards_are_read(how: dict[str, Any], tmp_path: Path) -> None:
    theirs = saved_model("Llama, unscaled", tmp_path, **how)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    with torch.no_grad():
        assert relative(HookedGPT.from_pretrained(tmp_path)(TOKENS), theirs(TOKENS).logits) <= 1e-4


def test_old_files_of_tensors_are_read_and_names_may_lack_their_prefix(tmp_path: Path) -> None:
    theirs = saved_model("GPT-2", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = {
        key.removeprefix("transformer."): value for key, value in theirs.state_dict().items() if "lm_head" not in key
    }
    state["h.0.attn.bias"] = torch.ones(1, 1, 40, 40)  # the causal mask, which old files carry
    torch.save(state, tmp_path / "pytorch_model.bin")
    with torch.no_grad():
        assert relative(HookedGPT.from_pretrained(tmp_path)(TOKENS), theirs(TOKENS).logits) <= 1e-4


def test_the_tensors_of_a_checkpoint_are_all_used(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved_model("Llama, unscaled", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    extra = state | {"model.layers.0.self_attn.q_proj.lora_A": torch.ones(3)}
    del extra["model.layers.2.mlp.up_proj.weight"]
    save_file(extra, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing: \['model.layers.2.mlp.up_proj.weight'\].*left over: .*lora_A"):
        HookedGPT.from_pretrained(tmp_path)
    save_file(state | {"model.norm.weight": torch.ones(5)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"of another shape: .*model.norm.weight.*make \[5\]; ln_final.w is \[24\]"):
        HookedGPT.from_pretrained(tmp_path)


def test_what_is_not_supported_is_named(tmp_path: Path) -> None:
    random_model("Llama, unscaled", mlp_bias=True).save_pretrained(tmp_path / "bias")
    with pytest.raises(ValueError, match="mlp_bias=True; only mlp_bias=False"):
        HookedGPT.from_pretrained(tmp_path / "bias")
    other = {"rope_type": "proportional", "factor": 2.0, "rope_theta": 1e4}
    random_model("Llama, unscaled", rope_parameters=other).save_pretrained(tmp_path / "rope")
    with pytest.raises(
        ValueError, match="rope_type='proportional'; supported: 'default', 'linear', 'llama3', 'dynamic'"
    ):
        HookedGPT.from_pretrained(tmp_path / "rope")
    file = tmp_path / "bias" / "config.json"
    file.write_text(file.read_text().replace('"model_type": "llama"', '"model_type": "mamba"'))
    with pytest.raises(ValueError, match=r"model_type='mamba'; supported: \['bloom', 'falcon'"):
        HookedGPT.from_pretrained(tmp_path / "bias")
    with pytest.raises(FileNotFoundError, match="no name on the hub either"):
        HookedGPT.from_pretrained(tmp_path / "no such")


def test_blooms_sizes_go_by_several_names() -> None:
    sizes = {"vocab_size": 31, "n_layer": 3, "hidden_size": 24, "n_head": 4}
    other = {"vocab_size": 31, "num_hidden_layers": 3, "n_embed": 24, "num_attention_heads": 4}
    assert bloom.config(sizes) == bloom.config(other)


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"(?s)the hub could not be reached.*Give a folder, or load it once"):
        HookedGPT.from_pretrained("some-owner/some-model", cache_dir=tmp_path)


def test_the_readmes_table_lists_the_families_that_are_tested() -> None:
    cells = re.findall(r"\| ([^|`]+?) \| `(\w+)`", (ROOT / "README.md").read_text())
    listed = [cell for cell in cells if cell != ("family", "model_type")]
    known = [(name, kind) for name, (kind, _) in FAMILIES.items() if "," not in name.replace("(1.5, 2)", "")]
    assert sorted(listed) == sorted(known)
