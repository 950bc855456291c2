"""Measuring a server under load: what is asked, when, and what came of it. Any server that streams OpenAI's way."""
