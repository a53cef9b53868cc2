"""The same operations in plain PyTorch, in compiled C++ and in Triton; reached through `dispatch` alone."""
