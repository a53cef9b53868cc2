"""What the experiment on the losses of f-divergences trains, at three scales."""

from __future__ import annotations

from dataclasses import dataclass

from fenchel.reproductions.configs import at_scale

KL, FAVOURITE = "kl", "alpha:1.5"
# generalized-kl is left out: between distributions, and with q = 1, it is kl.
DIVERGENCES = (
    KL,
    "reverse-kl",
    "jeffreys",
    "js",
    "hellinger",
    "chi2",
    "neyman",
    "alpha:1.1",
    FAVOURITE,
    "alpha:2",
)
PRETRAINING, FINE_TUNING, SWITCHED = "pretraining", "fine-tuning", "fine-tuning after cross-entropy"
MATCHED, FENCHEL_YOUNG, HARD = "distillation D_f", "distillation Fenchel-Young", "hard labels"
# The value of DistillConfig.loss.
LOSSES = {MATCHED: "divergence", FENCHEL_YOUNG: "fenchel-young"}
STAGES = (PRETRAINING, FINE_TUNING, SWITCHED, MATCHED, FENCHEL_YOUNG)
OWN_START = (
    FINE_TUNING,
    FENCHEL_YOUNG,
)  # from what the same loss pretrained; the others from cross-entropy's
NAMES = "names in the Python library"


@dataclass(frozen=True)
class Recipe:
    """The whole configuration.

    A model is TYPE:key=value,... to make it from scratch, or a directory or Hub name. Without
    `teacher_steps` the teacher is taken as it is.
    """

    texts: str
    teacher: str
    student: str
    teacher_steps: int
    teacher_learning_rate: float
    pretraining_steps: int
    learning_rate: float
    fine_tuning_steps: int
    distillation_steps: int
    second_learning_rate: float  # of fine-tuning and distillation
    batch: int
    held_out: int  # texts, at most
    curve_texts: int
    samples: int
    max_new_tokens: int
    max_length: int
    evaluation_batch: int
    curve_points: int = 6
    texts_config: str | None = None
    most_texts: int = 2_000_000  # read of each data set
    pairs: str | None = None  # a data set for fine-tuning; by default names again
    prompt_column: str = "prompt"
    completion_column: str = "completion"
    tokenizer: str | None = None  # by default one token a character
    processes: int = 2
    first_seed: int = 200  # those below served the search and an earlier run
    seeds: int = 4


_LLAMA = (
    "llama:max_position_embeddings=32,tie_word_embeddings=false,initializer_range=0.08,"
    "num_attention_heads=4,num_hidden_layers=2"
)
SMALL = Recipe(
    texts=NAMES,
    teacher=f"{_LLAMA},hidden_size=128,intermediate_size=256",
    student=f"{_LLAMA},hidden_size=64,intermediate_size=128",
    teacher_steps=1500,
    teacher_learning_rate=3e-3,
    pretraining_steps=600,
    learning_rate=6e-3,
    fine_tuning_steps=200,
    distillation_steps=200,
    second_learning_rate=2e-3,
    batch=32,
    held_out=4000,
    curve_texts=512,
    samples=1000,
    max_new_tokens=25,
    max_length=24,
    evaluation_batch=256,
)
# Wikipedia, then summaries. The teacher's logits have rows of padding, so the student has as many.
_FROM_SCRATCH = "llama:vocab_size=151936,max_position_embeddings=1024,tie_word_embeddings=true"
MEDIUM = Recipe(
    texts="Salesforce/wikitext",
    texts_config="wikitext-103-raw-v1",
    pairs="EdinburghNLP/xsum",
    prompt_column="document",
    completion_column="summary",
    tokenizer="Qwen/Qwen2.5-0.5B",
    teacher="Qwen/Qwen2.5-0.5B",
    student=f"{_FROM_SCRATCH},hidden_size=512,intermediate_size=1408,num_attention_heads=8,"
    "num_hidden_layers=8",
    teacher_steps=0,
    teacher_learning_rate=0.0,
    pretraining_steps=20_000,
    learning_rate=1e-3,
    fine_tuning_steps=2_000,
    distillation_steps=5_000,
    second_learning_rate=2e-4,
    batch=64,
    held_out=1000,
    curve_texts=100,
    samples=500,
    max_new_tokens=128,
    max_length=512,
    evaluation_batch=16,
    processes=1,
    seeds=3,
)
LARGE = Recipe(
    texts="HuggingFaceFW/fineweb-edu",
    texts_config="sample-10BT",
    pairs="EdinburghNLP/xsum",
    prompt_column="document",
    completion_column="summary",
    tokenizer="Qwen/Qwen2.5-1.5B",
    teacher="Qwen/Qwen2.5-1.5B",
    student=f"{_FROM_SCRATCH},hidden_size=768,intermediate_size=2048,num_attention_heads=12,"
    "num_hidden_layers=12",
    teacher_steps=0,
    teacher_learning_rate=0.0,
    pretraining_steps=100_000,
    learning_rate=6e-4,
    fine_tuning_steps=5_000,
    distillation_steps=20_000,
    second_learning_rate=1e-4,
    batch=128,
    held_out=2000,
    curve_texts=100,
    samples=500,
    max_new_tokens=128,
    max_length=512,
    evaluation_batch=16,
    processes=1,
    seeds=3,
)


def recipe(scale: str) -> Recipe:
    """The recipe of a scale: small, medium or large."""
    return at_scale(scale, {"small": SMALL, "medium": MEDIUM, "large": LARGE})
