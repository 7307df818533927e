"""Turns documents into rows of tokens: counts their tokens, packs them, and encodes them."""
