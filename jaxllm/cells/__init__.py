"""C2S-Scale: cells as sentences of gene names, from AnnData to a trained model to a virtual screen."""
