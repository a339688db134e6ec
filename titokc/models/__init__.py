"""The tokenizers, images <-> token indices, behind one interface; `titokc.weights` finds and loads them."""
