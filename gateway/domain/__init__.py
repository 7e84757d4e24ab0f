"""The nouns: frozen values that travel through the house. No input or output here."""
