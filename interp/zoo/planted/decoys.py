"""Models in which there is nothing to find: heads that a careless detector takes for more than they are."""

from typing import Unpack

from torch import diag, eye, ones

from interp.model import HookedGPT
from interp.zoo.planted.build import SHARP, Build, Options, check_sizes
from interp.zoo.planted.looking_back import k_back

BOS = 0


def uniform_head(d_vocab: int = 32, n_ctx: int = 64, **options: Unpack[Options]) -> HookedGPT:
    """A head with W_QK = 0, which attends to all positions alike and copies what it finds.

    It looks like whatever it is asked about. Early in a text every score is high, since few positions share the
    attention; where many keys match (a token that came often, what followed it each time), so is their sum; and as its
    OV circuit copies, a detector that asks for some attention to the right place, and for copying, is content.
    Chance is the number of matching keys by the number of positions, and this head is at chance everywhere.
    """
    check_sizes("uniform_head", d_vocab=(d_vocab, 2), n_ctx=(n_ctx, 2))
    m = Build("uniform_head", d_vocab=d_vocab, n_ctx=n_ctx, spaces={"token": d_vocab, "answer": d_vocab}, **options)
    m.embed(token=eye(d_vocab))
    m.head("uniform", 0, attends={}, moves={("token", "answer"): 1})
    m.unembed(answer=eye(d_vocab))
    return m.model()


def sink_head(d_vocab: int = 32, n_ctx: int = 64, **options: Unpack[Options]) -> HookedGPT:
    """A head that rests on BOS = 0, the first token, from everywhere, and whose value there is zero: it moves nothing.

    It looks like the strongest head that there is: all of its attention is on one token, its entropy is zero, its OV
    circuit copies every other token, and the score for the first token is 1. Weighed by the length of what is moved,
    the pattern is empty, and nothing changes when the head is taken out. (Without BOS it attends to all alike, and
    copies.)
    """
    check_sizes("sink_head", d_vocab=(d_vocab, 2), n_ctx=(n_ctx, 2))
    spaces = {"token": d_vocab, "one": 1, "bos": 1, "answer": d_vocab}
    m = Build("sink_head", d_vocab=d_vocab, n_ctx=n_ctx, spaces=spaces, **options)
    tokens = eye(d_vocab)
    is_bos = tokens[:, [BOS]]
    m.embed(token=tokens, one=ones(d_vocab, 1), bos=is_bos)
    m.head("sink", 0, attends={("one", "bos"): SHARP}, moves={("token", "answer"): diag(1 - tokens[BOS])})
    m.unembed(answer=eye(d_vocab))
    return m.model()


def fixed_offset_head(offset: int = 7, d_vocab: int = 32, n_ctx: int = 64, **options: Unpack[Options]) -> HookedGPT:
    """A head that looks `offset` positions back, whatever stands there, and copies what it finds.

    On tokens that repeat with a period of offset + 1 it looks like induction, and a perfect one: all of its attention
    is on what followed the present token before, and it predicts each second copy. With a period that does not divide
    offset + 1 none of it is there; so the head is found out by drawing the period, or by the heads before it: it stands
    in the first layer, where no stream says which token came before.
    """
    return k_back(offset, d_vocab, n_ctx, **options).model
