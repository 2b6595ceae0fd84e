"""Sentence pairs, tokenizers and batches of tokens."""
