"""From text files to packed batches: formats, encode, packing, sampling, and the embedded sample."""
