"""What the architecture learns: small tasks that need a state, trained at one length and tested at longer ones."""
