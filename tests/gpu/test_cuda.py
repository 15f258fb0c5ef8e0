"""The model on a CUDA device: the same numbers as on the CPU, hooked or not, in float32 and bfloat16."""

import copy
import threading

import pytest
import torch
from torch import Tensor

from interp import HookedGPT, HookPoint, KVCache
from tests.huggingface import from_gpt2, from_llama, hf_gpt2, hf_llama, random_weights
from tests.variants import VARIANTS, some_tokens, variant

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

TOKENS = some_tokens()
LEFT = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1]])


@pytest.fixture(autouse=True)
def exact_products() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def zero(x: Tensor, hook: HookPoint) -> Tensor:
    return x * 0


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.double().cpu(), b.double().cpu()
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("mask", [None, LEFT], ids=["unpadded", "left"])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_activation_equals_the_cpus(name: str, mask: Tensor | None) -> None:
    model = variant(name, torch.float64)
    logits, cache = model.run_with_cache(TOKENS, names_filter=lambda _: True, attention_mask=mask)
    on_gpu = copy.deepcopy(model).float().cuda()
    gpu_logits, gpu_cache = on_gpu.run_with_cache(TOKENS, names_filter=lambda _: True, attention_mask=mask)
    for key, value in cache.items():
        finite = value.isfinite()
        assert gpu_cache[key].is_cuda
        assert relative(gpu_cache[key].cpu()[finite], value[finite]) <= 1e-5, key
    assert relative(gpu_logits, logits) <= 1e-5
    assert relative(on_gpu(TOKENS, attention_mask=mask), logits) <= 1e-5


@pytest.mark.parametrize("name", VARIANTS)
def test_bfloat16_is_as_close_as_rounding_allows(name: str) -> None:
    model = variant(name)
    exact = model(TOKENS)
    on_cpu = relative(copy.deepcopy(model).bfloat16()(TOKENS), exact)
    half = model.bfloat16().cuda()
    for logits in (half(TOKENS), half.run_with_cache(TOKENS)[0]):
        assert logits.dtype == torch.bfloat16
        assert relative(logits, exact) <= 2 * on_cpu + 0.01


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "olmo2"])
def test_edits_gradients_and_backward_hooks_equal_the_cpus(name: str) -> None:
    model = variant(name, torch.float64)
    gpu = copy.deepcopy(model).cuda()
    for hook_name in model.hook_dict:
        hooks = [(hook_name, lambda x, hook: torch.where(x.isfinite(), 0.5 * x + 0.1, x))]
        edited = model.run_with_hooks(TOKENS, fwd_hooks=hooks)
        assert relative(gpu.run_with_hooks(TOKENS, fwd_hooks=hooks), edited) <= 1e-10
    seen: dict[str, list[Tensor]] = {"cpu": [], "cuda": []}
    for device, one in (("cpu", model), ("cuda", gpu)):
        keep = lambda grad, hook, device=device: seen[device].append(grad.cpu())
        with one.hooks(bwd_hooks=[("blocks.*.hook_resid_post", keep)]):
            loss = one(TOKENS, "loss")
        loss.backward()  # in a thread of its own, which knows no context
    assert len(seen["cuda"]) == 2
    for a, b in zip(seen["cuda"], seen["cpu"], strict=True):
        assert relative(a, b) <= 1e-10
    whole = sum(p.grad.norm() ** 2 for p in model.parameters()) ** 0.5
    for ours, theirs in zip(gpu.parameters(), model.parameters(), strict=True):
        assert (ours.grad.cpu() - theirs.grad).norm() <= 1e-4 * theirs.grad.norm() + 1e-6 * whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_logits_equal_hugging_faces(family: str, dtype: torch.dtype) -> None:
    make, translate = {"gpt2": (hf_gpt2, from_gpt2), "llama": (hf_llama, from_llama)}[family]
    theirs = random_weights(make(attn_implementation="sdpa"))
    tokens = torch.randint(0, 31, (3, 13))
    exact = theirs.double()(tokens).logits
    theirs = theirs.to(dtype)
    ours = translate(theirs).cuda()
    their_error = relative(theirs.cuda()(tokens.cuda()).logits, exact)
    assert relative(ours(tokens), exact) <= (1e-5 if dtype == torch.float32 else 2 * their_error)
    assert relative(ours.run_with_cache(tokens)[0], exact) <= (1e-5 if dtype == torch.float32 else 2 * their_error)


def test_steps_through_the_kv_cache_equal_the_whole() -> None:
    for name in ("gpt2", "llama"):
        model = variant(name).cuda()
        past = KVCache()
        with torch.no_grad():
            steps = [
                model(TOKENS[:, i : i + 1], past_kv_cache=past, attention_mask=LEFT[:, i : i + 1]) for i in range(7)
            ]
            whole = model(TOKENS, attention_mask=LEFT)
        assert relative(torch.cat(steps, 1), whole) <= 1e-5


def test_a_cache_can_land_on_the_cpu_and_costs_no_device_memory() -> None:
    model = variant("gpt2", n_layers=8, d_model=512, d_head=64, d_mlp=2048, n_ctx=256).cuda()
    tokens = torch.randint(0, 13, (8, 256), device="cuda")

    def peak(run: object) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        with torch.no_grad():
            run()  # type: ignore[operator]
        return torch.cuda.max_memory_allocated()

    peak(lambda: model(tokens))
    plain = peak(lambda: model(tokens))
    one = {"names_filter": "blocks.5.hook_resid_post", "pos_slice": -1}
    assert peak(lambda: model.run_with_cache(tokens, **one)) < 1.02 * plain
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter="*resid_post", device="cpu", dtype=torch.bfloat16)
    assert not cache["resid_post", 3].is_cuda


def test_an_unobserved_pass_never_waits_for_the_device() -> None:
    model = variant("llama").cuda()
    tokens = TOKENS.cuda()
    model(tokens)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(tokens)
        model.run_with_cache(tokens)
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.*.attn.hook_pattern", zero)])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_compiled_model_equals_the_eager_one_and_hears_hooks() -> None:
    eager = variant("gpt2", d_model=64, d_head=16, d_mlp=128).cuda()
    model: HookedGPT = copy.deepcopy(eager)
    model.compile()
    with torch.no_grad():
        assert relative(model(TOKENS), eager(TOKENS)) <= 1e-4
        hooks = [("blocks.0.attn.hook_pattern", zero)]
        assert (
            relative(model.run_with_hooks(TOKENS, fwd_hooks=hooks), eager.run_with_hooks(TOKENS, fwd_hooks=hooks))
            <= 1e-5
        )


def test_threads_share_a_model_on_the_device() -> None:
    model = variant("gpt2").cuda()
    alone = [model.run_with_hooks(TOKENS, fwd_hooks=[("hook_embed", lambda x, hook, i=i: x * i)]) for i in range(8)]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(50):
            out = model.run_with_hooks(TOKENS, fwd_hooks=[("hook_embed", lambda x, hook: x * i)])
            if not torch.equal(out, alone[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
