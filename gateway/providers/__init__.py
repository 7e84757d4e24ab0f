"""Wire formats: bytes in, nouns out. No sockets here."""
