"""Prompts with two names: which stands where, and what the other runs differ in."""

import re
from functools import cache

import pytest
import torch
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from interp import HookedGPT
from interp.tokenization import Tokenizer
from interp.zoo import planted
from interp.zoo.two_names import _PLACES, _TEMPLATES, _THINGS, NAMES, planted_two_names, single_token_names, two_names
from tests.variants import variant

_CUT = "Emma"  # two tokens


@cache
def speaker(distractor_heads: int = 0) -> tuple[HookedGPT, planted.Planted]:
    """The planted circuit in a model that reads sentences, with one of the names in two tokens; and as it was built."""
    known = [name for name in NAMES if name != _CUT]
    things = {"place": " ".join(_PLACES), "thing": " ".join(_THINGS)}
    text = " ".join(template.format(first="", second="", again="", **things) for template in _TEMPLATES)
    words = sorted({*re.findall(r"\w+|[.,]", text)} - {"to"})
    pieces = ["<bos>", " to", *(f" {name}" for name in known), *words, *(f" {word}" for word in words), " Em", "ma"]
    n_fillers = len(pieces) - 2 - len(known)
    sizes = {"n_names": len(known), "n_fillers": n_fillers, "n_ctx": n_fillers + 7}
    of = planted.indirect_object(**sizes, distractor_heads=distractor_heads, seed=1)
    backend = Backend(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="ma"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" Em(?=ma)|(?<= Em)ma| ?\w+|[.,]"), "isolated")
    backend.decoder = decoders.Fuse()
    model = HookedGPT(of.model.cfg, Tokenizer(backend, bos_token="<bos>")).eval()
    model.load_state_dict(of.model.state_dict())
    return model, of


def test_in_sentences_names_stand_where_it_is_said() -> None:
    model, _ = speaker()
    found = two_names(model, 20)
    assert found.mask is not None
    assert sorted(set(NAMES) - set(single_token_names(model))) == [_CUT]
    texts = [str(model.to_string(row[real])) for row, real in zip(found.tokens, found.mask, strict=True)]
    assert len({text.split(",")[0] for text in texts}) > 5, "several templates"
    subject_first = 0
    for row, text in enumerate(texts):
        io, s = (str(model.to_string(int(ids[row]))).strip() for ids in (found.indirect, found.subject))
        assert (text.count(io), text.count(s)) == (1, 2)
        assert text.endswith(" to")
        at = {place: int(where[row]) for place, where in found.places.items()}
        tokens = found.tokens[row]
        assert tokens[at["IO"]] == found.indirect[row]
        assert tokens[at["S1"]] == tokens[at["S2"]] == found.subject[row]
        assert at["S1"] < at["S2"] > at["IO"]
        assert (at["S1+1"], at["END"]) == (at["S1"] + 1, int(found.mask[row].sum()) - 1)
        assert found.at("S2")[row].nonzero().tolist() == [[at["S2"]]]
        subject_first += at["S1"] < at["IO"]
        names = [at["IO"], at["S1"], at["S2"]]
        assert (found.flipped[row] != tokens).nonzero()[:, 0].tolist() == [at["S2"]]
        assert found.flipped[row, at["S2"]] == found.indirect[row]
        assert (found.others[row] != tokens).nonzero()[:, 0].tolist() == sorted(names)
        assert len({*found.others[row, names].tolist(), int(found.indirect[row]), int(found.subject[row])}) == 5
    assert 4 < subject_first < 16
    again = two_names(model, 20)
    assert torch.equal(again.tokens, found.tokens)
    assert not torch.equal(two_names(model, 20, seed=1).subject, found.subject)


def test_of_the_planted_task_too() -> None:
    of = planted.indirect_object(seed=2)
    found = planted_two_names(of, 30)
    examples = of.sample(30)
    assert found.mask is None
    assert torch.equal(found.tokens, examples.tokens)
    assert torch.equal(found.at("S2"), examples.places["second_subject"])
    names = (found.at("IO") | found.at("S1") | found.at("S2")).nonzero().tolist()
    assert (found.others != found.tokens).nonzero().tolist() == names
    assert of.accuracy(examples) == 1
    with torch.no_grad():
        logits = of.model(found.others)[:, -1]
    asked = torch.stack([found.indirect, found.subject], 1)
    assert float(logits.gather(1, asked).abs().max()) < 0.2, "of three other names none is asked for"


def test_without_names_it_says_why() -> None:
    with pytest.raises(ValueError, match="no tokenizer"):
        two_names(variant("gpt2"))
    with pytest.raises(ValueError, match=r"names \d are single tokens of this model: 5 are needed"):
        two_names(HookedGPT.from_pretrained("stdlib-4l"))
    with pytest.raises(ValueError, match="induction has no names"):
        planted_two_names(planted.induction())
