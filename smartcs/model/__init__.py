"""The encoder, its heads, and checkpoints in and out."""
