"""What the bits mean: formats, packings, recipes, and the codecs that make and read them."""
