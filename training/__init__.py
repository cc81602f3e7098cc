"""How the demo model is made: its text, its tokenizer, its training, its GGUF."""
