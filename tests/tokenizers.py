"""A tokenizer like that of Llama, for tests."""

from interp.tokenization import Tokenizer


def llama_like() -> Tokenizer:
    """Words marked by a leading ▁, bytes where there is no word."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    words = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "i", "a", "b", "▁a", "▁h", "▁b"]
    merges = [("▁", "a"), ("▁", "h"), ("▁", "b")]
    backend = Backend(models.BPE({word: i for i, word in enumerate(words)}, merges, byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return Tokenizer(backend, eos_token="</s>")
