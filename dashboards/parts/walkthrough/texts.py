"""The stages of the walk: what is asked at each, and the answer, for the model that is on show."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isclose, sqrt

from interp import GPTConfig


@dataclass(frozen=True)
class Facts:
    """What the sentences depend on."""

    cfg: GPTConfig
    layer: int
    has_tokenizer: bool
    is_byte_pairs: bool = True  # whether merges are known
    room: bool = True  # whether the context has room for one token more

    @property
    def writes(self) -> bool:
        """Whether what comes out is a token that can be read again."""
        return self.cfg.d_vocab_out == self.cfg.d_vocab and self.cfg.attention_dir == "causal"


@dataclass(frozen=True)
class Stage:
    """A stage: its name in the list, the question, the answer, and why some models have it not."""

    title: str
    of: str | None  # the stage of `interp.walk` that has its numbers
    asks: str
    says: str | Callable[[Facts], str]
    lacks: Callable[[Facts], str | None] | None = None
    page: str = ""  # the page that shows it in full

    def answer(self, facts: Facts) -> str:
        """What is said of the stage."""
        return self.says if isinstance(self.says, str) else self.says(facts)

    def missing(self, facts: Facts) -> str | None:
        """Why the model has no such stage; None: it has."""
        return None if self.lacks is None else self.lacks(facts)


def _embedding(facts: Facts) -> str:
    scale = "" if facts.cfg.embed_scale == 1 else f", times {facts.cfg.embed_scale:.4g}"
    return (
        f"Each of the {facts.cfg.d_vocab:,} tokens has a row of d_model numbers in the matrix W_E; this token's row"
        f"{scale} begins its residual stream."
    )


def _position(facts: Facts) -> str:
    if facts.cfg.positional_embedding_type == "sinusoidal":
        return "Sines and cosines of the position, of many wavelengths, are added to the token's numbers."
    return "Each position has a row of d_model numbers in W_pos, weights like any others; it is added to the token's."


def _no_position(facts: Facts) -> str | None:
    kind = facts.cfg.positional_embedding_type
    if kind == "rotary":
        return (
            "Nothing is added to the stream here: this model's positions are rotary, and enter in q and k, "
            "at the stage Turn."
        )
    if kind == "shortformer":
        return (
            "Nothing is added to the stream here: in each layer queries and keys read the position beside it, "
            "at the stage Query, key, value."
        )
    if kind is None:
        sees = "the mask alone tells what came before" if facts.cfg.attention_dir == "causal" else "order is not seen"
        return f"This model is given no positions: {sees}."
    return None


def _norm(facts: Facts) -> str:
    mean = "its mean is taken off, and it is" if (facts.cfg.normalization_type or "").startswith("LN") else "it is"
    of = "standard deviation" if mean.startswith("its") else "root mean square"
    gain = " and multiplied by a learned gain" if facts.cfg.normalization_type in ("LN", "RMS") else ""
    return (
        f"The stream grows from layer to layer, so a part first brings what it reads to a common size: {mean} divided "
        f"by its {of}{gain}."
    )


def _no_norm(what: str) -> Callable[[Facts], str | None]:
    def said(facts: Facts) -> str | None:
        if facts.cfg.normalization_type is None:
            return "This model has no norms: the stream is read as it is."
        if facts.cfg.norm_position == "post":
            return f"This model has no norm before {what}: it norms the stream after each addition."
        if facts.cfg.norm_position == "output":
            return f"This model has no norm before {what}: it norms what is added to the stream."
        return None

    return said


def _mlp_norm(facts: Facts) -> str:
    if facts.cfg.parallel_shared_norm:
        return "In this model the MLP reads the same normed stream as attention does."
    if facts.cfg.parallel_attn_mlp:
        return f"{_norm(facts)} Here attention and MLP read the same stream, each through a norm of its own."
    return f"Before the MLP the stream is normed again. {_norm(facts)}"


def _no_mlp_norm(facts: Facts) -> str | None:
    return _no_mlp(facts) or _no_norm("the MLP")(facts)


def _no_mlp(facts: Facts) -> str | None:
    return "This model has attention alone: its layers have no MLP." if facts.cfg.attn_only else None


def _qkv(facts: Facts) -> str:
    cfg, shared = facts.cfg, ""
    if cfg.has_grouped_queries:
        shared = f" In this model {cfg.n_heads // cfg.n_key_value_heads} heads share a key and a value."
    return (
        "Each head makes three vectors of what it reads: a query, which is a question; a key, the label by which "
        f"this token is found; and a value, the update that it gives to those who look at it.{shared}"
    )


def _turn(facts: Facts) -> str:
    turned = (
        "Pairs of numbers of q and k are turned by an angle that grows with the position, so that q · k depends on how "
        "far apart two tokens are."
    )
    normed = "Queries and keys are brought to a common size first."
    cfg = facts.cfg
    if not cfg.turns(facts.layer):
        return normed
    part = f" Of {cfg.d_head} numbers, {cfg.rotary_dim} turn." if cfg.rotary_dim < cfg.d_head else ""
    return f"{normed} {turned}{part}" if cfg.use_qk_norm else f"{turned}{part}"


def _no_turn(facts: Facts) -> str | None:
    if facts.cfg.turns(facts.layer) or facts.cfg.use_qk_norm:
        return None
    return "In this model q and k are used as they are: positions, if it has them, have come in before."


def _scaling(facts: Facts) -> str:
    cfg = facts.cfg
    why = (
        "A sum of d_head products grows with √d_head; divided by it, scores stay where the softmax is neither flat nor "
        "all on one key."
    )
    if not isclose(cfg.attn_scale, sqrt(cfg.d_head)):
        why += f" This model divides by {cfg.attn_scale:.4g}, though √{cfg.d_head} is {sqrt(cfg.d_head):.4g}."
    if cfg.attn_scores_soft_cap is not None:
        why += f" It also caps scores smoothly, at ±{cfg.attn_scores_soft_cap:g}."
    if cfg.positional_embedding_type == "alibi":
        why += " Where things stand enters here: each head takes a slope of its own times the distance off its scores."
    return why


def _mask(facts: Facts) -> str:
    window = ""
    if facts.cfg.is_local(facts.layer):
        window = f" In this layer it sees the last {facts.cfg.window_size} alone, its own included."
    return (
        "The model is to predict what comes next, so a query may not look at later tokens: their scores become −∞, and "
        f"get no weight.{window}"
    )


def _no_mask(facts: Facts) -> str | None:
    return None if facts.cfg.attention_dir == "causal" else "This model looks both ways: nothing is masked."


def _heads(facts: Facts) -> str:
    normed = " What is added is normed first." if facts.cfg.norm_position in ("output", "both") else ""
    return (
        f"The z of each of the {facts.cfg.n_heads} heads is taken to d_model numbers by the head's own W_O, and the "
        f"results are summed.{normed}"
    )


def _added(facts: Facts) -> str:
    normed = " Then this model norms the sum." if facts.cfg.norm_position == "post" else ""
    return (
        "What attention found is added to the stream, not put in its place: what stood there is still to be "
        f"read.{normed}"
    )


def _not_added(facts: Facts) -> str | None:
    if facts.cfg.parallel_attn_mlp:
        return "In this model attention and MLP read the same stream, and both are added at the end of the layer."
    return None


def _mlp_added(facts: Facts) -> str:
    last = facts.layer == facts.cfg.n_layers - 1
    then = (
        "This is the last layer" if last else f"Layer {facts.layer + 1} of 0 to {facts.cfg.n_layers - 1} reads it next"
    )
    both = "What attention and the MLP wrote" if facts.cfg.parallel_attn_mlp else "What the MLP wrote"
    normed = ", then normed" if facts.cfg.norm_position == "post" else ""
    return f"{both} is added to the stream{normed}. {then}."


def _expand(facts: Facts) -> str:
    gate = " A second product will say how much of it passes." if facts.cfg.gated_mlp else ""
    return (
        f"Each of {facts.cfg.d_mlp:,} neurons has a pattern, a column of W_{'gate' if facts.cfg.gated_mlp else 'in'}, "
        f"and takes its product with what the MLP reads: how much of the pattern is there.{gate}"
    )


def _activation(facts: Facts) -> str:
    gate = " What passes is multiplied by the second product." if facts.cfg.gated_mlp else ""
    if facts.cfg.act_fn in ("solu", "solu_ln"):
        normed = " What is left is normed." if facts.cfg.act_fn == "solu_ln" else ""
        return (
            "Each neuron is multiplied by its share of one softmax over all of them: the largest stay, the others "
            f"nearly vanish.{normed}"
        )
    return (
        f"{facts.cfg.act_fn} lets through what is positive, and little or nothing of the rest; without such a bend the "
        f"two matrices of the MLP would be no more than one.{gate}"
    )


def _contract(facts: Facts) -> str:
    normed = " What is added is normed first." if facts.cfg.norm_position in ("output", "both") else ""
    return f"Each neuron writes its row of W_out, as much of it as it fires; the sum has d_model numbers again.{normed}"


def _final_norm(facts: Facts) -> str:
    return f"After {facts.cfg.n_layers} layers the stream is normed once more, before it is read off."


def _no_final_norm(facts: Facts) -> str | None:
    if facts.cfg.normalization_type is None:
        return "This model has no final norm: the logits are read off the stream as it is."
    if facts.cfg.norm_position == "post":
        return "This model has no final norm: the last layer has normed the stream already."
    return None


def _logits(facts: Facts) -> str:
    cfg = facts.cfg
    tied = " Here W_U is the embedding W_E, turned round." if cfg.tie_word_embeddings else ""
    cap = "" if cfg.output_logits_soft_cap is None else f" Logits are capped at ±{cfg.output_logits_soft_cap:g}."
    what = "token" if cfg.d_vocab_out == cfg.d_vocab else "answer"
    return (
        f"The end of the stream is multiplied with the column of W_U of each {what}: {cfg.d_vocab_out:,} logits, "
        f"of which a larger one means likelier.{tied}{cap}"
    )


def _no_text(facts: Facts) -> str | None:
    return (
        None if facts.has_tokenizer else "This model has no tokenizer: its prompt is token ids, numbers from the start."
    )


def _no_merges(facts: Facts) -> str | None:
    if not facts.has_tokenizer:
        return _no_text(facts)
    if not facts.is_byte_pairs:
        return "This model's tokenizer is not byte-level BPE, so there are no merges of bytes to show."
    return None


def _no_next(facts: Facts) -> str | None:
    if facts.cfg.attention_dir != "causal":
        return "This model looks both ways: a new token changes all earlier keys and values, so none can be kept."
    if not facts.writes:
        return "This model's outputs are answers, not tokens that it could read: it does not go on."
    if not facts.room:
        return (
            f"The context is full: this model reads {facts.cfg.n_ctx} tokens at once, and has no place for one more. "
            "Click an earlier token to see what may follow it."
        )
    return None


STAGES = [
    Stage(
        "Text",
        None,
        "What goes in?",
        "A text. It will be cut into tokens, pieces of a vocabulary; from then on all is numbers.",
        _no_text,
    ),
    Stage(
        "Tokens",
        None,
        "How does text become tokens?",
        "Byte-pair encoding starts with the bytes of each word, and joins, again and again, the two "
        "neighbours that stand first in a list of merges, which was learned from text.",
        _no_merges,
    ),
    Stage(
        "Embedding",
        "embedding",
        "How does a token become numbers?",
        _embedding,
        page="model",
    ),
    Stage("Positions", "position", "How does it know the order of words?", _position, _no_position, "model"),
    Stage("Norm before attention", "attention norm", "Why is the stream normed?", _norm, _no_norm("attention"), "lens"),
    Stage("Query, key, value", "q, k, v", "What are q, k and v?", _qkv, page="heads"),
    Stage("Turn", "turn", "How do positions enter in q and k?", _turn, _no_turn, "model"),
    Stage(
        "Scores",
        "scores",
        "Which tokens matter to this one?",
        "The query's product with the key of each token, q · k: large where they point the same way. All "
        "queries with all keys make a square.",
        page="heads",
    ),
    Stage("Scaling", "scaling", "Why divide by √d_head?", _scaling, page="heads"),
    Stage("Mask", "mask", "Why can it not look ahead?", _mask, _no_mask, "heads"),
    Stage(
        "Softmax",
        "softmax",
        "How do scores become weights?",
        "Each score's exponential, divided by the sum of all in its row: weights from 0 to 1, which sum to 1.",
        page="heads",
    ),
    Stage(
        "Weighted values",
        "values",
        "What does the head take from there?",
        "The values of all tokens that it sees, each times its weight, summed up: z, the head's update.",
        page="heads",
    ),
    Stage("Heads joined", "heads", "What becomes of all the heads?", _heads, page="heads"),
    Stage("Attention added", "attention added", "Where does it go?", _added, _not_added, "attribution"),
    Stage("Norm before the MLP", "mlp norm", "Why norm again?", _mlp_norm, _no_mlp_norm, "lens"),
    Stage("Expand", "expand", "What does the MLP do?", _expand, _no_mlp, "memories"),
    Stage("Activation", "activation", "What does the activation do?", _activation, _no_mlp, "memories"),
    Stage("Contract", "contract", "What do neurons write?", _contract, _no_mlp, "memories"),
    Stage("MLP added", "mlp added", "And then?", _mlp_added, _no_mlp, "attribution"),
    Stage(
        "Final norm",
        "final norm",
        "What happens after the last layer?",
        _final_norm,
        _no_final_norm,
        "lens",
    ),
    Stage("Logits", "logits", "How do numbers become a word?", _logits, page="lens"),
    Stage(
        "Temperature",
        None,
        "What is temperature?",
        "Logits are divided by it before the softmax: below 1 likely tokens gain, above 1 all become "
        "more alike, at 0 the likeliest is taken.",
        page="generate",
    ),
    Stage(
        "Top k, top p",
        None,
        "What are top k and top p?",
        "Filters that leave out what is unlikely: top k keeps the k likeliest, top p the fewest that have "
        "probability p together; the softmax is over what is left.",
        page="generate",
    ),
    Stage(
        "Sampled token",
        None,
        "How is a token chosen?",
        "Probabilities are laid end to end in the order of the vocabulary; a random number from 0 to 1 "
        "falls into one of them.",
        page="generate",
    ),
    Stage(
        "Next token",
        None,
        "And the token after that?",
        "Now the query is one vector and not a matrix: the keys and values of all earlier tokens were kept "
        "(the KV cache), and nothing else of them is needed.",
        _no_next,
        "generate",
    ),
]
TITLES = [stage.title for stage in STAGES]
PARTS = {
    "Text": "Into the model",
    "Norm before attention": "Attention",
    "Norm before the MLP": "MLP",
    "Final norm": "Out of it",
}
