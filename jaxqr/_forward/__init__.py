"""How factors are computed. Nothing here knows of derivatives."""
