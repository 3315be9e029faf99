"""The small model that ships: its corpus, its tokenizer, its training, its export and its evaluation."""
