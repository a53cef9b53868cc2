"""Training: the only part that knows transformers, accelerate, datasets and peft."""
