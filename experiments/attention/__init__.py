"""What attention and its embeddings learn easily, and what they bind to one use alone."""
