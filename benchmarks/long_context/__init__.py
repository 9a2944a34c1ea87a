"""What the state carries over long distances: perplexity against position, parts taken away, and a passkey."""
