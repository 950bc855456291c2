"""The engine: token ids in, token ids and logprobs out. It knows no text."""
