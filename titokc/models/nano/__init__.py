"""nano, the embedded tokenizer: a linear code in integers, and a decoder that learns what is missing.

config (without torch), code (what tokens mean), fit (how codebooks are made), transform, faithful (the decoder),
tokenizer (all together).
"""
