"""The mathematics of the derivatives, and nothing else: arrays in, arrays out."""
