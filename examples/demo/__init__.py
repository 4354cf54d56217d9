"""The embedded model: a folder that any reader of Hugging Face checkpoints opens."""
