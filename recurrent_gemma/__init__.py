"""RecurrentGemma for Transformers."""
