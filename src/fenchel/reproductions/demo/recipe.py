"""What the demonstration trains: the divergences, the sizes of the models and the numbers of steps."""

from __future__ import annotations

from dataclasses import dataclass

DIVERGENCES = ("kl", "reverse-kl", "js", "hellinger", "alpha:1.5")
BASELINE = "hard labels"
PROMPTS = ("Return a list of", "The file object", "Raise ValueError if")


@dataclass(frozen=True)
class Size:
    """Everything that sets how long the demonstration takes."""

    teacher: str
    student: str
    teacher_steps: int
    student_steps: int
    teacher_cost: float  # of one step, relative to one of a student; for the time left only
    held_out_rows: int
    curve_rows: int
    sample_tokens: int
    vocabulary: int = 1024
    window: int = 128
    batch: int = 16


_LLAMA = "llama:max_position_embeddings=256,tie_word_embeddings=true"
FULL = Size(
    teacher=f"{_LLAMA},hidden_size=192,intermediate_size=512,num_hidden_layers=6,num_attention_heads=6",
    student=f"{_LLAMA},hidden_size=96,intermediate_size=256,num_hidden_layers=3,num_attention_heads=4",
    teacher_steps=400,
    student_steps=200,
    teacher_cost=2.0,
    held_out_rows=160,
    curve_rows=32,
    sample_tokens=48,
)
QUICK = Size(
    teacher=f"{_LLAMA},hidden_size=128,intermediate_size=320,num_hidden_layers=3,num_attention_heads=4",
    student=f"{_LLAMA},hidden_size=64,intermediate_size=160,num_hidden_layers=2,num_attention_heads=4",
    teacher_steps=120,
    student_steps=60,
    teacher_cost=2.0,
    held_out_rows=48,
    curve_rows=16,
    sample_tokens=24,
)
