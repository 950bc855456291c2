"""How the bundled model is made: corpus, problems, tokenizer, training, export, evaluation."""
