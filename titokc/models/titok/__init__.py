"""TiTok (arXiv 2406.07550), as released and as trained here.

config (without torch), vit and pixel_decoder (the networks), tokenizer (all together).
"""
