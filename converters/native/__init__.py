"""The native format: one file with everything, readable as safetensors."""
