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
    start_steps: int  # of the students' common start, on the text alone
    student_steps: int
    held_out_rows: int
    curve_rows: int
    sample_tokens: int
    vocabulary: int = 2048
    window: int = 128
    batch: int = 8
    curve_points: int = 6


_LLAMA = "llama:max_position_embeddings=256,tie_word_embeddings=true,num_attention_heads=4"
FULL = Size(
    teacher=f"{_LLAMA},hidden_size=256,intermediate_size=672,num_hidden_layers=3",
    student=f"{_LLAMA},hidden_size=96,intermediate_size=256,num_hidden_layers=3",
    teacher_steps=600,
    start_steps=200,
    student_steps=200,
    held_out_rows=128,
    curve_rows=16,
    sample_tokens=48,
)
QUICK = Size(
    teacher=f"{_LLAMA},hidden_size=128,intermediate_size=320,num_hidden_layers=2",
    student=f"{_LLAMA},hidden_size=64,intermediate_size=160,num_hidden_layers=2",
    teacher_steps=180,
    start_steps=50,
    student_steps=40,
    held_out_rows=32,
    curve_rows=8,
    sample_tokens=16,
    curve_points=4,
)
