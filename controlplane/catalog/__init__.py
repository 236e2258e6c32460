"""Models, hardware and engines as data, and the memory fit between them."""
