"""Microbiome: ASV sequences to a sample's embedding, pre-trained on UniFrac distances, then to a target."""
