"""Model families: one decoder, one small file a family, and the loader for safetensors checkpoints."""
