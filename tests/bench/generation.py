"""Tokens per second beside `transformers.generate`, GPT-2-small size: `make bench`."""

import torch
from transformers import GenerationConfig

from tests.bench.model import SMALL
from tests.bench.timing import in_turn, report
from tests.huggingface import from_gpt2, hf_gpt2

NEW = 128


def main(device: str = "cpu", dtype: torch.dtype = torch.float32, rounds: int = 5) -> None:
    theirs = hf_gpt2(**SMALL).to(device, dtype)
    ours = from_gpt2(theirs).to(device)
    settings = GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None)
    for batch in (1, 8):
        prompt = torch.randint(0, ours.cfg.d_vocab, (batch, 32), device=device)
        mask = torch.ones_like(prompt)
        rivals = {
            "theirs": lambda prompt=prompt, mask=mask: theirs.generate(
                prompt, attention_mask=mask, generation_config=settings
            ),
            "ours": lambda prompt=prompt: ours.generate(prompt, NEW, temperature=0),
        }
        times = in_turn(rivals, rounds)
        report(f"{NEW} tokens, batch {batch}, {device}, against transformers", times["ours"], times["theirs"], 1 / 1.15)
        speed = {name: batch * NEW / seconds for name, seconds in times.items()}
        print(f"    tokens per second: ours {speed['ours']:.1f}, theirs {speed['theirs']:.1f}")


if __name__ == "__main__":
    main()
