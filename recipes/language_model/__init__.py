"""Language models: from any text to a tokenizer, a decoder, and text again."""
