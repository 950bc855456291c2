"""Everything that knows text: tokenizer, chat template, incremental detokenization, stop strings."""
