"""What a model is: its tensors, layers and what they cost."""
